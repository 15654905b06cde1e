"""Artefact metadata: each stage writes the facts of its output, and the next stage reads them."""

import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from tempfile import gettempdir
from typing import TextIO, TypeVar, get_type_hints

from genrec.runtime.cli import command_line, is_main_process
from genrec.runtime.errors import UserError
from genrec.runtime.files import (
    FACTS,
    LOCK,
    atomic_path,
    check_ours,
    check_output,
    contents,
    sha256,
    write_json,
    written,
)
from genrec.runtime.machine import code_commit
from genrec.runtime.text import read_json

logger = logging.getLogger(__name__)
T = TypeVar("T")

NOTE = "arguments.json"  # the arguments of an unfinished run
# Files of an unfinished run, as patterns of `fnmatch`, in which * also matches /.
UNFINISHED = (
    NOTE, "checkpoint-*", "shard-*", ".shard-*", "records-*", "training/*", "embeddings.*", "collaborative.*",
    "parts/*", "extended-*", "batch-*", ".*.partial-*",
)  # fmt: skip
NAMED_BY = {"train": "DRAFT_MODEL_NAME", "build_index": "INDEX_NAME"}  # stage -> script variable of the output
# Arguments that folders made before there was a choice do not name -> how the stages worked then.
BEFORE_THERE_WAS = {
    "bos_eos": False, "collaborative": 0, "exclude_seen": False, "item_rows": "random",
    "lora_modules": ["q_proj", "v_proj"], "plus.adaptive_exit": True, "plus.adjust_likelihood": True,
    "plus.guided": True, "vllm": False,
}  # fmt: skip
_held: dict[Path, TextIO] = {}  # locks by folder, held while this process works there


def make_facts(stage: str, arguments: dict, **more: object) -> dict:
    """Returns the facts of an artefact: stage, arguments (with the seed), command, commit of the code, date, versions
    and `more`."""
    return {
        "stage": stage,
        **more,
        "arguments": arguments,
        "command": command_line(),
        "commit": code_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {
            "python": platform.python_version(),
            **{
                package: importlib.metadata.version(package)
                for package in ("torch", "transformers", "peft", "accelerate")
            },
        },
    }


def read_facts(folder: Path, stage: str | tuple[str, ...], script: str) -> dict:
    """Reads the facts of the artefact that `stage`, or one of several stages, wrote to `folder`.

    Raises UserError that names the script to run if it is missing, or the stage that wrote it if it is another one.
    """
    if not (folder / FACTS).is_file():
        there = (
            f"has no {FACTS}, so no stage of ours has finished it" if folder.is_dir() else "not there, or not finished"
        )
        raise UserError(f"{folder}: {there}; it is written by: bash script/{script}.sh")
    facts = read_json(folder / FACTS)
    stages = (stage,) if isinstance(stage, str) else stage
    if not isinstance(facts, dict) or facts.get("stage") not in stages:
        written = facts.get("stage") if isinstance(facts, dict) else "something else"
        raise UserError(f"{folder}: was written by {written}, but the output of {' or '.join(stages)} is needed here")
    if not isinstance(facts.get("arguments"), dict):
        raise UserError(f"{folder / FACTS}: does not say its arguments, perhaps damaged; make the folder again")
    return facts


def from_facts(folder: str, facts: dict, name: str, kind: type[T]) -> T:
    """Returns the dataclass stored as `name` in facts. Raises UserError if a field without a default is missing, or one
    is of another type."""
    said, hints = facts.get(name), get_type_hints(kind)
    default = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
    given = default | said if isinstance(said, dict) else {}
    if not given or not all(isinstance(given.get(field), hint) for field, hint in hints.items()):
        raise UserError(f"{folder}/{FACTS}: does not say its {name}, perhaps damaged; make the folder again")
    return kind(**{field: given[field] for field in hints})


def fingerprint(facts: dict) -> str:
    """Returns a hash that identifies an artefact by its facts (seed, arguments, results), without the list of files."""
    return sha256(repr(sorted(item for item in facts.items() if item[0] != "files")).encode())[:16]


def write_facts(folder: Path, facts: dict) -> None:
    """Writes the facts, with a list of files (see `check_ours`), to an otherwise complete folder and unlocks it."""
    write_json(folder / FACTS, {**facts, "files": [name for name in contents(folder) if name not in (FACTS, NOTE)]})
    _unlock(folder)


@contextmanager
def new_folder(output: Path, stage: str, arguments: dict, work: Path | None = None, **facts: object) -> Iterator[Path]:
    """A folder to fill that becomes `output`, with its facts, once the context ends without an error.

    work: the folder of what was done on the way, which is then cleared. facts: see `make_facts`.
    """
    with atomic_path(output) as partial:
        partial.mkdir()
        yield partial
        write_facts(partial, make_facts(stage, arguments, **facts))
    if work:
        clear(work)


def already_done(output: Path, work: Path, stage: str, arguments: dict, overwrite: bool) -> bool:
    """Returns whether `output` already holds the result of `stage` for the same arguments; if not, prepares `work`.

    `work` is then locked against other runs on this machine. A run begun there with the same arguments is resumed; with
    `overwrite` both folders are cleared first. Call it on the main process first.
    Raises UserError if either was made, or begun, with other arguments, or holds files that this project did not write.
    """
    if is_done(output, work, stage, arguments, overwrite):
        return True
    if not is_main_process():
        return False
    work.mkdir(parents=True, exist_ok=True)
    _lock(work)
    if overwrite:
        for folder in {output, work}:
            if contents(folder):
                logger.info(f"{folder}: removed (--overwrite)")
                clear(folder)
        work.mkdir(parents=True, exist_ok=True)
        _lock(work)
    if _has_progress(work):
        logger.info(f"{work}: resumed")
    else:
        write_json(work / NOTE, arguments)
    return False


def is_done(output: Path, work: Path, stage: str, arguments: dict, overwrite: bool = False) -> bool:
    """Returns whether `output` already holds the result of `stage` for the same arguments; changes nothing.

    Always False with `overwrite`. Raises UserError if `output` was made, or `work` begun, with other arguments; if
    either holds files in the way that this project did not write; or if `output` cannot be written.
    """
    if not overwrite and (output / FACTS).is_file():
        _refuse_other_arguments(output, read_facts(output, stage, stage), arguments, stage)
        logger.info(f"{output}: done already, nothing to do")
        return True
    for folder in {output, work}:
        check_output(folder)
        begun = folder == work and (work / NOTE).is_file()
        if folder.is_dir() and (overwrite or not begun):
            check_ours(folder, UNFINISHED)
    if not overwrite and _has_progress(work):
        _refuse_other_arguments(work, {"arguments": read_json(work / NOTE)}, arguments, stage)
    return False


def _has_progress(work: Path) -> bool:
    """Returns whether a run wrote more to `work` than its arguments, because of which it may have failed."""
    return (work / NOTE).is_file() and contents(work) != [NOTE]


def clear(folder: Path) -> None:
    """Removes what stages wrote to a folder, finished or not, and then the folder itself if it is empty."""
    for name in written(folder, UNFINISHED):
        (folder / name).unlink()
    _unlock(folder)
    for below in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        if not any(below.iterdir()):
            below.rmdir()
    if any(folder.iterdir()):
        logger.info(f"{folder}: left, as it holds {contents(folder)[0]}")
    else:
        folder.rmdir()


def hold(output: Path) -> None:
    """Locks `output` against other runs of this user on this machine until this process ends, in whatever way.

    For stages without a work folder, which `already_done` would lock. Raises UserError if another run holds the lock.
    """
    if is_main_process():
        name = f"atspeed-{os.getuid()}-{sha256(str(output.resolve()).encode())[:16]}.lock"
        _acquire(Path(gettempdir(), name), output, "choose another output")


def _lock(work: Path) -> None:
    """Locks a folder against other runs until this process clears or completes it, or ends in whatever way."""
    _acquire(work / LOCK, work, "choose another OUTPUT_DIR")


def _acquire(path: Path, place: Path, otherwise: str) -> None:
    """Locks the file at `path`, which represents `place`, unless this process already holds it."""
    if place.resolve() in _held:
        return
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(f"{place}: another run is at work there; wait for it, or {otherwise}") from error
    except OSError:  # the file system does not support locks
        pass
    _held[place.resolve()] = file


def _unlock(work: Path) -> None:
    (work / LOCK).unlink(missing_ok=True)
    if work.resolve() in _held:
        _held.pop(work.resolve()).close()


def _refuse_other_arguments(folder: Path, facts: dict, arguments: dict, stage: str) -> None:
    made = facts.get("arguments")
    if not isinstance(made, dict):
        raise UserError(f"{folder}: does not say what it was made with, perhaps damaged; remove it and start again")
    for name, was, asked in other_arguments(made, arguments):
        raise UserError(
            f"{folder}: was made with --{name} {was}, not {asked}; choose another "
            f"{NAMED_BY.get(stage, 'OUTPUT_DIR')}, or pass --overwrite"
        )


def other_arguments(made: dict, arguments: dict) -> Iterator[tuple[str, object, object]]:
    """Name, value in `made` (the arguments that a folder names) and value in `arguments`, of each that differs."""
    arguments = json.loads(json.dumps(arguments))  # as they were written: a tuple is a list there
    made = {name: value for name, value in BEFORE_THERE_WAS.items() if name in arguments} | made
    for name in sorted({*made, *arguments}):
        if made.get(name) != arguments.get(name):
            yield name, made.get(name), arguments.get(name)
