"""How a stage is started: real processes, whose `main` leaves a file if it ever runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from genrec.runtime.artefacts import write_facts
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path
from genrec.runtime.text import read_bytes

STAGE = '''
import json
from pathlib import Path

from genrec.runtime.cli import run
from genrec.runtime.errors import UserError


def main(
    output: str, seed: int = 0, rate: float = 1.0, widths: tuple[int, ...] = (20,), index: str | None = "i",
    max_users: int | None = 9, full: bool = True, names: tuple[str, ...] = (),
) -> None:
    """What it does."""
    Path("ran.json").write_text(json.dumps(locals()))
    if seed == 13:
        raise UserError("--seed 13: brings bad luck; choose another")


if __name__ == "__main__":
    run(main)
'''
DEFAULTS = dict(output="a", seed=0, rate=1.0, widths=[20], index="i", max_users=9, full=True, names=[])


@pytest.fixture
def stage(tmp_path):
    (tmp_path / "stage.py").write_text(STAGE)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "code"), "PAGER": "cat"}

    def start(*arguments):
        command = [sys.executable, "stage.py", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return start


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        ([], {}),
        (["--rate", "2", "--seed=3"], dict(rate=2.0, seed=3)),
        (["--widths", "1,3,5", "--max-users", "5"], dict(widths=[1, 3, 5], max_users=5)),
        (["--widths", "5", "--nofull"], dict(widths=[5], full=False)),
        (["--index", "", "--max_users=", "--full", "false"], dict(index=None, max_users=None, full=False)),
        (["--index", "None", "--rate=1e-4", "--full"], dict(index=None, rate=1e-4)),
        (["--output", "2024_01_05", "--index", "1e3"], dict(output="2024_01_05", index="1e3")),
        (["--names", "gamma 0,trie"], dict(names=["gamma 0", "trie"])),
        (["--seed", "1", "--seed", "2"], dict(seed=2)),  # a script's flag, then the user's
    ],
)
def test_flags_become_typed_values(stage, tmp_path, arguments, values):
    result = stage("--output", "a", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    read = json.loads((tmp_path / "ran.json").read_text())
    assert read == DEFAULTS | values
    assert type(read["rate"]) is float


NO_LIST = "--widths takes whole numbers with commas between them, such as 1,2,3, not"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "a", "--sed", "3"], "unknown flag --sed; did you mean --seed?"),
        (["--output", "a", "--max-user=3"], "unknown flag --max-user; did you mean --max_users?"),
        (["--output", "a", "--zzz"], "unknown flag --zzz; known flags: --output, --seed, --rate"),
        (["--output", "a", "--nofull", "True"], "unknown flag --nofull; did you mean --full?"),
        (["--output", "a", "--seed", "3.5"], "--seed takes int, not 3.5"),
        (["--output", "a", "--seed", "True"], "--seed takes int, not True"),
        (["--output", "a", "--rate", "fast"], "--rate takes float, not 'fast'"),
        (
            ["--output", "a", "--widths", "1,x"],
            f"{NO_LIST} '1,x'",
        ),
        (
            ["--output", "a", "--widths", "1,,5"],
            f"{NO_LIST} '1,,5'",
        ),
        (
            ["--output", "a", "--widths", "1 5 10"],
            f"{NO_LIST} '1 5 10'",
        ),
        (
            ["--output", "a", "--widths", "256x4"],
            f"{NO_LIST} '256x4'",
        ),
        (
            ["--output", "a", "--widths="],
            f"{NO_LIST} ''",
        ),
        (["--output", "a", "--names", "trie,,auto"], "--names trie,,auto: there is nothing between two commas"),
        (["--output", "a", "--seed=-3"], "--seed -3: must be in 0 … 4294967295"),
        (["--output", "a", "--max_users=-5"], "--max_users -5: must be at least 1"),
        (["--output="], "--output is empty; give a value"),
        (["--output", "a", "--full", "yes"], "--full takes bool, not 'yes'"),
        (["--output", "a", "--max_users", "all"], "--max_users takes int, not 'all'"),
        (["a", "--seed", "3"], "unexpected argument 'a'; every argument is a flag, such as --output VALUE"),
        (["--output", "a", "--seed", "3", "b"], "unexpected argument 'b'"),
        (["--output", "a", "-sed", "3"], "unexpected argument '-sed'"),
        (["--output", "a", "-", "b"], "unexpected argument '-'"),
        (["--output", "--seed", "3"], "--output needs a value"),
        (["--seed", "3"], "--output is missing"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(stage, tmp_path, arguments, message):
    result = stage(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "ran.json").exists()


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        (["2024_01_05", "--rate", "2"], "2024_01_05"),
        (["--rate", "2", "--output", "a"], "a"),
        (["a", "--rate", "2", "--output", "b"], "b"),  # the last counts, as for every flag
        (["--rate", "2", "a"], "error: unexpected argument 'a'; every"),
        (["a", "4"], "error: unexpected argument '4'; every"),
        (["--rate", "2"], "error: --output is missing; pass"),
    ],
)
def test_the_first_argument_goes_without_a_flag_where_main_takes_it_so(stage, tmp_path, arguments, result):
    (tmp_path / "stage.py").write_text(STAGE.replace("output: str,", "output: str, /,"))
    done = stage(*arguments)
    if done.returncode == 0:
        assert json.loads((tmp_path / "ran.json").read_text()) == DEFAULTS | dict(rate=2.0, output=result)
    else:
        assert done.stderr.startswith(result)
        assert not (tmp_path / "ran.json").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["--output", "a", "--help"], ["-h"]])
def test_help_does_no_work(stage, tmp_path, arguments):
    result = stage(*arguments)
    assert result.returncode == 0
    assert "What it does." in result.stdout + result.stderr
    assert not (tmp_path / "ran.json").exists()


def test_help_may_be_cut_off_by_its_reader(stage, tmp_path):
    command = f"{sys.executable} stage.py --help | true"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "code")}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_users_mistake_inside_is_one_line_too(stage):
    result = stage("--output", "a", "--seed", "13")
    assert (result.returncode, result.stderr) == (2, "error: --seed 13: brings bad luck; choose another\n")


GROUP = """
import sys
from torch import distributed
from genrec.runtime.cli import errors_in_one_line
with errors_in_one_line():
    distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
print(distributed.is_initialized())
"""


def test_a_stage_leaves_its_process_group(tmp_path):
    """A thread of gloo that outlived the interpreter now and then aborted a process whose work was done."""
    command = [sys.executable, "-c", GROUP, str(tmp_path / "group")]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "code")}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=True)
    assert done.stdout == "False\n"


ENDS = """
import os, signal, sys
from pathlib import Path
from genrec.runtime.cli import errors_in_one_line
from genrec.runtime.files import atomic_path
with errors_in_one_line(), atomic_path(Path("result")) as partial:
    partial.write_text("half")
    {}
"""


@pytest.mark.parametrize(
    ("statement", "code", "line", "logged"),
    [
        ("raise ValueError('two\\nlines')", 1, "error: ValueError: two lines; the traceback is in ", True),
        ("open('/nowhere/at/all')", 2, "error: /nowhere/at/all: No such file or directory", True),
        ("Path('a' * 300).read_text()", 2, f"error: {'a' * 300}: File name too long", True),
        ("(partial / 'weights').read_text()", 2, "error: result/weights: Not a directory", True),
        ("raise RuntimeError(f'at {partial}/x')", 1, "error: RuntimeError: at result/x; the", True),
        ("import json; json.loads('[' * 100_000)", 2, "error: a file or value is nested too deep", True),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "error: interrupted; run the same command again", False),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "error: terminated; run the same command", False),
    ],
)
def test_whatever_ends_a_stage_is_one_line_and_the_log_has_the_rest(tmp_path, statement, code, line, logged):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "code"), "LOG_FILE": str(tmp_path / "log/stage.log")}
    done = subprocess.run(
        [sys.executable, "-c", ENDS.format(statement)], cwd=tmp_path, env=environment, text=True, capture_output=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
    assert done.stderr.startswith(line)
    assert (tmp_path / "log/stage.log").is_file() == logged
    assert not logged or "Traceback" in (tmp_path / "log/stage.log").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["log"] * logged


def test_a_bar_is_not_drawn_after_the_line_that_ends_a_stage(tmp_path):
    code = "from genrec.runtime.cli import errors_in_one_line\nfrom genrec.runtime.progress import progress_bar\n"
    code += "with errors_in_one_line():\n    bar = progress_bar(2, 'work', 'step'); bar.update(1); 1 / 0\n"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "code"), "LOG_DIR": str(tmp_path)}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1].startswith("error: ZeroDivisionError")


def test_a_log_file_that_cannot_be_written_leaves_one_line_too(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "code"), "LOG_FILE": "/dev/full"}
    command = [sys.executable, "-c", ENDS.format("raise ValueError('it')")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)
    said = "error: ValueError: it; the traceback could not be written to /dev/full, which LOG_FILE changes\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_a_folder_replaces_a_folder_as_a_whole(tmp_path):
    folder = tmp_path / "deep" / "artefact"
    for name in ("old", "new"):
        with atomic_path(folder) as partial:
            partial.mkdir()
            (partial / name).write_text(name)
            write_facts(partial, {})
            assert not (folder / name).exists()
    assert {path.name for path in folder.iterdir()} == {"new", "facts.json"}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
def test_an_exception_leaves_what_was_there_and_nothing_else(tmp_path, kind):
    path = tmp_path / "artefact"
    path.mkdir()
    (path / "old").write_text("old")

    def write():
        with atomic_path(path) as partial:
            if kind == "file":
                partial.write_text("half")
            elif kind == "folder":
                partial.mkdir()
                (partial / "half").write_text("half")
            assert kind == "nothing", "boom"

    with pytest.raises(AssertionError, match="nothing was written" if kind == "nothing" else "boom"):
        write()
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["artefact", "artefact/old"]


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent: no such file; check the path"):
        read_bytes(tmp_path / "absent")
    with pytest.raises(UserError, match="no such file; fetch it"):
        read_bytes(tmp_path, hint="fetch it")
