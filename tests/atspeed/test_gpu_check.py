"""The check of a GPU: all of its code on the CPU, and what it does where something fails."""

import os
import subprocess
import sys
import time

import pytest

from atspeed.commands import gpu_check
from atspeed.gpu import gpu_checks
from atspeed.gpu.gpu_models import SkippedCheck
from conftest import ROOT, environment, script

BEYOND = ("accelerate", "datasets", "duckdb", "fire", "matplotlib", "pandas", "peft", "sentencepiece")


def test_all_of_it_passes_on_the_cpu_in_the_smallest_sizes(tmp_path):
    output, code = script("gpu_check", tmp_path, "--device", "cpu", "--small", "true", REPORT=str(tmp_path / "r.md"))
    assert code == 0, output
    report = (tmp_path / "r.md").read_text()
    for name in gpu_checks.CHECKS:
        assert f"| {name} | passed |" in report
        assert f"## {name}" in report
    assert "4 of 4 lists identical for all methods; 0 differ by a tie in float32" in report
    assert "attach this file" in output


@pytest.mark.skipif(gpu_check.has_gpu(), reason="there is one")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    output, code = script("gpu_check", tmp_path)
    assert (output, code) == (
        "error: torch sees no GPU here; --device cpu --small true runs the same code on the CPU\n", 2,
    )  # fmt: skip
    assert not (tmp_path / "output").exists()


def skip(scope):
    raise SkippedCheck("needs a moon")


def fail(scope):
    raise AssertionError("other lists\nand more")


def test_what_fails_skips_dies_or_hangs_ends_no_other_check(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "LEAST", 0)
    monkeypatch.setattr(gpu_check, "SECONDS_A_MINUTE", 4)
    checks = {
        "fails": fail, "skips": skip, "dies": lambda scope: os._exit(1), "passes": lambda scope: ["a line"],
        "hangs": lambda scope: time.sleep(100), "is late": skip,
    }  # fmt: skip
    monkeypatch.setattr(gpu_checks, "CHECKS", checks)
    with pytest.raises(SystemExit) as ended:
        gpu_check.main(str(tmp_path / "report.md"), device="cpu", small=True, minutes=1)
    assert ended.value.code == 1
    report = (tmp_path / "report.md").read_text()
    assert "| fails | failed: AssertionError: other lists |" in report
    assert "and more" in report, "the traceback"
    assert "| skips | skipped: needs a moon |" in report
    assert "| dies | failed: its process died |" in report
    assert "| passes | passed |" in report
    assert "a line" in report
    assert "| hangs | failed: it did not end within" in report
    assert "| is late | skipped: no time is left |" in report


def test_it_needs_torch_and_transformers_alone(tmp_path):
    code = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {BEYOND} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
from atspeed.commands.gpu_check import check
for name in ("device and versions", "clock", "equality in float32"):
    print(check(name, "cpu", True, {str(tmp_path)!r})[0])
sys.argv = ["gpu_check", "--output", {str(tmp_path / "no")!r}, "--device", "gpu", "--small", "true", "--minutes", "5"]
from genrec.runtime.cli import run
from atspeed.commands.gpu_check import main
run(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(tmp_path), text=True, capture_output=True, check=False
    )
    assert done.stdout.split() == ["passed"] * 3, done.stderr
    assert done.stderr.endswith("error: --device gpu: choose from cuda, cpu\n")
