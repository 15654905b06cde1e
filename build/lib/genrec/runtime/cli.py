"""Starts programs: flags are checked before any work, and a user's mistake ends in one line and exit code 2."""

import ctypes
import gc
import inspect
import logging
import os
import shlex
import signal
import sys
import threading
import time
import traceback
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn

from genrec.runtime.errors import UserError
from genrec.runtime.files import disk_refusal, final_paths
from genrec.runtime.flags import RANGES, Flag, help_text, read_flags

PATIENCE = 5  # seconds that the main process is given to fail for what another fails for
# That a process waits for the slowest, in a barrier or a collective; torch's own ten minutes end a job whose processes
# have uneven work. One that dies is noticed by the launcher, which ends the others at once.
GROUP_TIMEOUT = timedelta(days=1)
LONGEST = 300  # characters of an unexpected exception that a line shows
_AGAIN = "run the same command again to go on: what was finished is kept"


def run(main: Callable[..., None], arguments: list[str] | None = None) -> None:
    """Run `main` with the flags of the command line. Its parameters are the flags, its annotations their types.

    arguments: the command line; None: all that the program was started with.

    What takes seconds to import (torch, transformers, pandas) `main` imports itself, after it has checked all that can
    be checked without, and so do the functions that need it: help and a refusal then come at once.
    """
    hints, parameters = typing.get_type_hints(main), inspect.signature(main).parameters
    flags = {name: Flag(hints[name], each.default, RANGES.get(name)) for name, each in parameters.items()}
    # A first argument may go without its flag where `main` takes it so: `def main(dataset: str, /, …)`.
    positional = [name for name, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_ONLY]
    with start(main, flags, positional[0] if positional else None, arguments) as given:
        main(*[given.pop(name) for name in positional], **given)


@contextmanager
def start(
    main: Callable[..., None], flags: dict[str, Flag], first: str | None = None, arguments: list[str] | None = None
) -> Iterator[dict[str, object]]:
    """Read the command line of a program, in `errors_in_one_line`. With --help it prints the flags and exits."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with errors_in_one_line():
        if {"--help", "-h"} & set(arguments):
            print(help_text(main.__doc__ or sys.modules[main.__module__].__doc__ or "", flags), flush=True)
            sys.exit(0)
        yield read_flags(arguments, flags, first)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """A stage's log on the terminal; whatever ends it early is one line there.

    A user's mistake and what the file system refuses end with exit code 2, Ctrl-C with 130, SIGTERM with 143. The
    traceback of any other exception goes to the log file, which the line names, and the exit code is 1.
    """
    _set_up_logging()
    _end_in_order_on_sigterm()
    _end_with_the_launcher()
    try:
        yield
        leave_process_group()
    except UserError as error:
        _end(str(error), 2)
    except (KeyboardInterrupt, _Terminated) as error:
        said, code = ("terminated", 143) if isinstance(error, _Terminated) else ("interrupted", 130)
        if not is_main_process():  # one of several says it
            sys.exit(code)
        _end(f"{said}; {_AGAIN}", code)
    except BrokenPipeError:  # whoever read the output, as in `--help | head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        _end(f"{name}{error.strerror or error}; {_keep_traceback()}", 2)
    except RecursionError:
        _end(f"a file or value is nested too deep to be read; {_keep_traceback()}", 2)
    except Exception as error:  # whatever it is: one line here, all of it in the log
        if full := disk_refusal(error):
            _end(f"the disk takes no more ({full}); make room. {_keep_traceback()}", 2)
        said = " ".join(str(error).split())
        said = said if len(said) <= LONGEST else f"{said[:LONGEST]}…"
        _end(f"{type(error).__name__}: {said}; {_keep_traceback()}", 1)


class _Terminated(BaseException):
    """SIGTERM has arrived; files half-written are removed on the way out."""


def _end_in_order_on_sigterm() -> None:
    def terminate(*_: object) -> None:
        raise _Terminated

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)


def _end_with_the_launcher() -> None:
    """One of several processes ends where their launcher is killed, which could not end them: they would wait for one
    another, and hold their memory, for as long as GROUP_TIMEOUT."""
    if process_count() > 1 and sys.platform == "linux":
        parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)  # one that waits in a collective hears no other


def _end(line: str, code: int) -> NoReturn:
    if not is_main_process():  # what all fail for, the main one says: once it has ended, the launcher ends the others
        for ending in (signal.SIGTERM, signal.SIGINT):
            signal.signal(ending, signal.SIG_DFL)
        time.sleep(PATIENCE)
    for bar in list(sys.modules["tqdm"].tqdm._instances) if "tqdm" in sys.modules else ():
        bar.close()  # or it would be drawn once more, after the line
    sys.stdout.flush()
    print(f"error: {final_paths(line)}", file=sys.stderr)
    sys.exit(code)


def _keep_traceback() -> str:
    """Append the traceback of the exception at hand to the log file, and say where it is."""
    path = Path(os.environ.get("LOG_FILE", log_file(Path(sys.argv[0]).stem)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now():%F %T} {command_line()}\n{traceback.format_exc()}")
    except OSError:  # as on a disk that is full
        return f"the traceback could not be written to {path}, which LOG_FILE changes"
    return f"the traceback is in {path}"


def log_file(name: str) -> str:
    """Where what is to be kept of a program's failure goes, unless LOG_FILE says otherwise."""
    return f"{os.environ.get('LOG_DIR', 'log')}/{name}.log"


def command_line() -> str:
    """What this process was started with, to be pasted into a shell: `atspeed train …`, `python -m specgr.run …`."""
    program, spec = [Path(sys.argv[0]).name], getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:  # started by -m
        program = ["python", "-m", spec.name.removesuffix(".__main__")]
    elif program[0].endswith(".py"):
        program = ["python", sys.argv[0]]
    return shlex.join([*program, *sys.argv[1:]])


def leave_process_group() -> None:
    """While the interpreter is whole: threads of gloo that outlive it may abort the process, its work done. Not after a
    failure, when the other processes may still wait in the group."""
    if "torch" in sys.modules:
        from torch import distributed

        if distributed.is_initialized():
            gc.collect()  # models that are wrapped for several processes hold on to it
            distributed.destroy_process_group()


def is_main_process() -> bool:
    """Whether this is the main process: rank 0 of an `accelerate launch`, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def is_local_main_process() -> bool:
    """Whether this is the first process of its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def process_count() -> int:
    """How many processes an `accelerate launch` has started, without the seconds that accelerate takes to say it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _set_up_logging() -> None:
    level = logging.INFO if is_main_process() else logging.ERROR
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    for package in ("genrec", "atspeed", "specgr", "__main__"):
        logging.getLogger(package).setLevel(level)
