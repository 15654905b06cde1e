r"""Check this project on a GPU within ten minutes, and write a report.

    bash script/gpu_check.sh
    atspeed gpu-check --output gpu_check.md
    atspeed gpu-check --output gpu_check.md --device cpu --small true

Equality in float32, CUDA graphs, precision, the four stages in bf16 and times beside `generate` and the floor. It needs
torch and transformers alone; what needs more is skipped, and says so. A check that fails does not end the others. Exit
code: 0 if no check failed, 1 if one did, 2 if there is no GPU. --small runs all of the code in the smallest sizes.
"""

import multiprocessing
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from datetime import datetime
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from genrec.runtime.errors import UserError
from genrec.runtime.files import check_new, write_text

T = TypeVar("T")
SEND = "Please attach this file to an issue of this repository, whatever it says: figures of a new GPU are welcome."
LEAST = 15  # seconds for which it is worth to begin a check
SECONDS_A_MINUTE = 60


def main(output: str, device: str = "cuda", small: bool = False, minutes: int = 10, overwrite: bool = False) -> None:
    if device not in ("cuda", "cpu"):
        raise UserError(f"--device {device}: choose from cuda, cpu")
    path = Path(output)
    check_new(path, overwrite, file=True)
    end = time.monotonic() + SECONDS_A_MINUTE * minutes
    # Each check has a process of its own: after some errors a GPU does nothing more for the process that met them.
    if device == "cuda" and not in_process(has_gpu, 60):
        raise UserError("torch sees no GPU here; --device cpu --small true runs the same code on the CPU")

    from atspeed.gpu.gpu_checks import CHECKS

    results, details = [], []
    with TemporaryDirectory() as folder:
        for name in CHECKS:
            begin = time.monotonic()
            said, lines = checked(name, device, small, folder, end - begin)
            results.append((name, said, time.monotonic() - begin))
            details += ["", f"## {name}", "", *lines]
            print(f"{name}: {said} ({results[-1][2]:.0f} s)", flush=True)
            write_text(path, report(results, list(CHECKS)[len(results) :], details))
    print(f"written to {output}. {SEND}")
    sys.exit(any(said.startswith("failed") for _, said, _ in results))


def checked(name: str, device: str, small: bool, folder: str, left: float) -> tuple[str, list[str]]:
    """What became of a check, and its lines."""
    if left < LEAST:
        return "skipped: no time is left", ["Not begun: --minutes gives more time."]
    try:
        return in_process(check, left, name, device, small, folder)
    except TimeoutError:
        return f"failed: it did not end within {left:.0f} seconds", []
    except EOFError:
        return "failed: its process died", ["By a signal, such as of the system when memory ends."]


def check(name: str, device: str, small: bool, folder: str) -> tuple[str, list[str]]:
    """Run a check: what became of it, and its lines."""
    import traceback

    import torch

    from atspeed.gpu.gpu_checks import CHECKS
    from atspeed.gpu.gpu_models import GPUScope, SkippedCheck

    scope = GPUScope(torch.device("cuda:0" if device == "cuda" else "cpu"), small, Path(folder))
    try:
        with redirect_stderr(StringIO()):  # a progress bar for each of a hundred measurements
            return "passed", CHECKS[name](scope)
    except SkippedCheck as reason:
        return f"skipped: {reason}", []
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        return f"failed: {type(error).__name__}: {first[:200]}", ["```", traceback.format_exc().strip(), "```"]


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def in_process(function: Callable[..., T], seconds: float, *arguments: object) -> T:
    """What the function returns in a process of its own.

    Raises TimeoutError if that takes longer than so many seconds, EOFError if the process died.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_send, args=(sender, function, *arguments))
    process.start()
    pid = process.pid
    assert pid is not None, "it was started"
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise TimeoutError
        return receiver.recv()
    finally:
        process.kill()
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what it has started
        process.join()


def _send(sender: Connection, function: Callable[..., object], *arguments: object) -> None:
    os.setsid()
    sender.send(function(*arguments))


def report(results: list[tuple[str, str, float]], open_: list[str], details: list[str]) -> str:
    rows = [f"| {name} | {said} | {seconds:.0f} |" for name, said, seconds in results]
    rows += [f"| {name} | not begun | |" for name in open_]
    head = ["# Check on a GPU", "", f"{datetime.now():%F %T}, {platform.platform()}. {SEND}", ""]
    return "\n".join([*head, "| check | result | seconds |", "| --- | --- | ---: |", *rows, *details]) + "\n"
