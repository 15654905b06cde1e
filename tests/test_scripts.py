"""The variables of the scripts: which are read, by what name, and what is refused. No stage is run."""

import os
import subprocess

import pytest

from conftest import ROOT


@pytest.fixture
def flags(tmp_path):
    """Runs a script; gives (exit code, what it said on stderr, the flags that its stage was started with)."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nshift\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)

    def run(script, *arguments, **variables):
        own = {"PYTHON": str(python), "LOG_DIR": str(tmp_path / "log"), "OUTPUT_DIR": str(tmp_path / "output")}
        done = subprocess.run(
            ["bash", ROOT / "script" / f"{script}.sh", *arguments], env=os.environ | own | variables, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        said = done.stdout.splitlines()
        return done.returncode, done.stderr, dict(zip(said[::2], said[1::2], strict=True))

    return run


OLD_NAMES = {
    "inference": ("run_beam_sizes", "3,4"),
    "train": ("r_student", "0.25"),
    "compare": ("run_beam_sizes", "3,4"),
    "benchmark": ("run_beam_sizes", "3,4"),
}


@pytest.mark.parametrize("script", OLD_NAMES)
def test_the_names_of_the_release_are_read_in_lower_case_too(flags, script):
    name, value = OLD_NAMES[script]
    for variables in ({name: value}, {name.upper(): value}, {name: value, name.upper(): value}):
        code, error, given = flags(script, **variables)
        assert (code, error, given[f"--{name}"]) == (0, "", value)
    code, error, given = flags(script, **{name: value, name.upper(): "9"})
    said = f"error: {name}={value} and {name.upper()}=9 are one variable; set {name.upper()} alone\n"
    assert (code, error, given) == (2, said, {})
