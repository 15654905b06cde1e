"""Several processes are started, and what is heard of them if they fail."""

import importlib.util
import signal
import subprocess
import sys

import psutil
import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from conftest import ROOT

PROGRAM = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from genrec.runtime.cli import errors_in_one_line
from genrec.runtime.errors import UserError
rank = os.environ["RANK"]
with errors_in_one_line():
    {}
"""


@pytest.fixture(scope="module")
def launch():
    spec = importlib.util.spec_from_file_location("launch", ROOT / "script/launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([2, -15], 2),
        ([143, 2], 2),  # the main process was ended because of the other
        ([1, -9], 1),
        ([-9, 143], 137),
        ([-15, -15], 143),
        ([130, 130], 130),
    ],
)
def test_the_exit_code_is_that_of_the_process_that_failed_of_itself(launch, tmp_path, codes, expected):
    failures = [ProcessFailure(rank, 0, code, "") for rank, code in enumerate(codes)]
    for failure in failures:
        failure.timestamp = 1
    assert launch.exit_code(failures) == expected


@pytest.mark.parametrize(
    ("statement", "code", "lines"),
    [
        ("pass", 0, []),
        ("raise UserError('wrong')", 2, ["error: wrong"]),
        ("if rank == '0': time.sleep(60)\n    raise UserError('mine alone')", 2,
         ["error: mine alone"]),
        ("os.kill(os.getpid(), signal.SIGKILL) if rank == '1' else time.sleep(60)", 137,
         ["error: process 1 of this machine was ended by SIGKILL"]),
    ],
)  # fmt: skip
def test_a_failure_is_said_once_whichever_process_it_is_of(tmp_path, statement, code, lines):
    (tmp_path / "program.py").write_text(PROGRAM.format(statement))
    done = subprocess.run(
        [sys.executable, ROOT / "script/launch.py", "torchrun", "--standalone", "--nproc_per_node", "2",
         tmp_path / "program.py", ROOT / "code"], capture_output=True, text=True, check=False,
    )  # fmt: skip
    # The main process, ended because of the other, says so too, if it had begun.
    said = [line for line in done.stderr.splitlines() if not line.startswith("error: terminated; run the same command")]
    assert (done.returncode, done.stdout, len(said)) == (code, "", len(lines)), done.stderr
    assert all(one.startswith(line) for one, line in zip(said, lines, strict=True)), done.stderr


def test_a_launcher_that_is_terminated_ends_in_one_line(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM.format("os.write(1, b'begun\\n')\n    time.sleep(60)"))
    started = subprocess.Popen(
        [sys.executable, ROOT / "script/launch.py", "torchrun", "--standalone", "--nproc_per_node", "2",
         tmp_path / "program.py", ROOT / "code"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert [started.stdout.readline() for _ in range(2)] == ["begun\n", "begun\n"]
    started.send_signal(signal.SIGTERM)
    said = started.communicate(timeout=60)[1]
    assert started.returncode == 128 + signal.SIGTERM
    assert said.splitlines() == ["error: terminated; run the same command again to go on: what was finished is kept"]


def test_processes_end_with_a_launcher_that_is_killed(tmp_path):
    """They are in sessions of their own, so that no signal to its group reaches them."""
    (tmp_path / "program.py").write_text(PROGRAM.format("print(os.getpid(), flush=True)\n    time.sleep(60)"))
    started = subprocess.Popen(
        [sys.executable, ROOT / "script/launch.py", "torchrun", "--standalone", "--nproc_per_node", "2",
         tmp_path / "program.py", ROOT / "code"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    pids = [int(started.stdout.readline()) for _ in range(2)]
    assert all(psutil.pid_exists(pid) for pid in pids)
    started.kill()
    started.wait()
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
    assert not alive
