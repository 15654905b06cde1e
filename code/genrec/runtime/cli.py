"""How a stage is started: flags are checked before any work, a user's mistake ends in one line and exit code 2."""

import difflib
import functools
import gc
import inspect
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import fire

from genrec.runtime.errors import UserError
from genrec.runtime.files import disk_refusal, final_paths
from genrec.runtime.limits import RANGES

PATIENCE = 5  # seconds that the main process is given to fail for what another fails for
LONGEST = 300  # characters of an unexpected exception that a line shows
_AGAIN = "run the same command again to go on: what was finished is kept"
_FLAG = re.compile(r"--|-[a-zA-Z]|-$")  # what fire does not take for a value


def run(main: Callable[..., None]) -> None:
    """Run `main` with the flags of the command line. Its annotations are the flags' types.

    What takes seconds to import (torch, transformers, pandas) `main` imports itself, after it has checked all that can
    be checked without, and so do the functions that need it: help and a refusal then come at once.
    """
    arguments = sys.argv[1:]
    with errors_in_one_line():
        if {"--help", "-h"} & set(arguments):
            arguments = ["--help"]  # in any other place fire would run `main` first
        else:
            arguments = _with_flag(main, arguments)
            _check_flags(main, arguments)
        fire.Fire(_typed(main), arguments)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """A stage's log on the terminal; whatever ends it early is one line there.

    A user's mistake and what the file system refuses end with exit code 2, Ctrl-C with 130, SIGTERM with 143. The
    traceback of any other exception goes to the log file, which the line names, and the exit code is 1.
    """
    _set_up_logging()
    _end_in_order_on_sigterm()
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
    default = Path(os.environ.get("LOG_DIR", "log")) / f"{Path(sys.argv[0]).stem}.log"
    path = Path(os.environ.get("LOG_FILE", default))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now():%F %T} {' '.join(sys.argv)}\n{traceback.format_exc()}")
    except OSError:  # as on a disk that is full
        return f"the traceback could not be written to {path}, which LOG_FILE changes"
    return f"the traceback is in {path}"


def leave_process_group() -> None:
    """While the interpreter is whole: threads of gloo that outlive it may abort the process, its work done. Not after a
    failure, when the other processes may still wait in the group."""
    if "torch" in sys.modules:
        from torch import distributed

        if distributed.is_initialized():
            gc.collect()  # models that are wrapped for several processes hold on to it
            distributed.destroy_process_group()


def is_main_process() -> bool:
    """Whether this is the process that speaks: rank 0 of an `accelerate launch`, or the only one."""
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


def _with_flag(main: Callable[..., None], arguments: list[str]) -> list[str]:
    """The first argument may go without its flag where `main` takes it so: `def main(dataset: str, /, …)`."""
    first = next(iter(inspect.signature(main).parameters.values()))
    if first.kind is first.POSITIONAL_ONLY and arguments and not arguments[0].startswith("-"):
        return [f"--{first.name}={arguments[0]}", *arguments[1:]]
    return arguments


def _check_flags(main: Callable[..., None], arguments: list[str]) -> None:
    """fire runs the function first and complains after; a stage must not train for a day on a mistyped flag."""
    hints, parameters, given = typing.get_type_hints(main), inspect.signature(main).parameters, set()
    known, rest = list(parameters), list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            raise UserError(f"unexpected argument {argument!r}; every argument is a flag, such as --{known[0]} VALUE")
        flag, equals, _ = argument.partition("=")
        name, bare = flag[2:].replace("-", "_"), not equals and (not rest or bool(_FLAG.match(rest[0])))
        if bare and name not in known:
            name = name.removeprefix("no")  # fire turns --noflag into flag=False
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean --{near[0]}?" if near else f"known flags: {', '.join('--' + k for k in known)}"
            raise UserError(f"unknown flag {flag}; {hint}")
        if bare and hints[name] is not bool:
            raise UserError(f"{flag} needs a value: {flag} VALUE")
        if not bare and not equals:
            rest.pop(0)
        given.add(name)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in given:
            raise UserError(f"--{name} is missing; pass --{name} VALUE")


def _typed(main: Callable[..., None]) -> Callable[..., None]:
    """`main`, with every value checked against its annotation and its limits."""
    hints, signature = typing.get_type_hints(main), inspect.signature(main)

    @functools.wraps(main)
    def checked(*args: object, **kwargs: object) -> None:
        given = signature.bind(*args, **kwargs)
        given.arguments = {name: _convert(name, value, hints[name]) for name, value in given.arguments.items()}
        for name, value in given.arguments.items():
            if name in RANGES and value is not None:
                RANGES[name].check(f"--{name}", value)
        main(*given.args, **given.kwargs)

    # Text stays as typed: fire would read the folder 2024_01_05 as the number 20240105, and 1,,5 as who knows what.
    texts = {name: str for name, hint in hints.items() if hint in (str, str | None) or _is_list(hint)}
    return fire.decorators.SetParseFns(**texts)(checked)


def _is_list(hint: object) -> bool:
    return any(typing.get_origin(option) is tuple for option in (hint, *typing.get_args(hint)))


def _convert(name: str, value: object, hint: object) -> object:
    """`value` as fire read it, as the type that the flag has."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # Python 3.10 makes the latter of a default of None
        if value in (None, "", "None"):
            return None
        (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is tuple:  # a default is one already, what is typed is text
        return value if isinstance(value, tuple) else _convert_list(name, value, typing.get_args(hint)[0])
    if hint is str:
        if not value:
            raise UserError(f"--{name} is empty; give a value")
        return str(value)
    if hint is bool and str(value).lower() in ("true", "false"):  # as a shell writes them
        return str(value).lower() == "true"
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise UserError(f"--{name} takes {hint.__name__}, not {value!r}")
    return value


def _convert_list(name: str, text: str, kind: type) -> tuple:
    """What stands between the commas of `text`. Of names there may be none."""
    parts = [part.strip() for part in text.strip("()[]").split(",")]
    if kind is str:
        if "" in parts and text:
            raise UserError(f"--{name} {text}: there is nothing between two commas, or before or after one")
        return tuple(parts) if text else ()
    try:
        return tuple(kind(part) for part in parts)
    except ValueError as error:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"--{name} takes {what} with commas between them, such as 1,2,3, not {text!r}") from error
