"""Artefact metadata: every stage writes the facts of its output, and the next stage reads them."""

import fcntl
import importlib.metadata
import logging
import os
import platform
import sys
import time
from pathlib import Path
from tempfile import gettempdir
from typing import TextIO, TypeVar, get_type_hints

from genrec.runtime.cli import is_main_process
from genrec.runtime.errors import UserError
from genrec.runtime.files import FACTS, LOCK, check_ours, check_output, contents, sha256, write_json, written
from genrec.runtime.text import read_json

logger = logging.getLogger(__name__)
T = TypeVar("T")

NOTE = "arguments.json"  # of what is begun
# What stages write before they have ended, as patterns of `fnmatch`, in which * also stands for /.
UNFINISHED = (
    NOTE, "checkpoint-*", "shard-*", ".shard-*", "records-*", "training/*", "embeddings.*", "parts/*", "extended-*",
    "batch-*", ".*.partial-*",
)  # fmt: skip
NAMED_BY = {"train": "DRAFT_MODEL_NAME", "build_index": "INDEX_NAME"}  # the scripts' variable for another output
_held: dict[Path, TextIO] = {}  # locks by folder, for as long as this process works there


def make_facts(stage: str, arguments: dict, **more: object) -> dict:
    """The facts of an artefact: what made it, from what, with which versions and seed."""
    return {
        "stage": stage,
        **more,
        "arguments": arguments,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
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
    """The facts of the artefact that `stage`, or one of them, left in `folder`.

    Raises UserError that names the script to run if it is not there, or the stage that wrote it if it is another.
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
    """The dataclass that the facts of a folder hold as `name`. Raises UserError if a field is missing or of another
    type."""
    said, hints = facts.get(name), get_type_hints(kind)
    if not isinstance(said, dict) or not all(isinstance(said.get(field), hint) for field, hint in hints.items()):
        raise UserError(f"{folder}/{FACTS}: does not say its {name}, perhaps damaged; make the folder again")
    return kind(**{field: said[field] for field in hints})


def fingerprint(facts: dict) -> str:
    """Identifies an artefact: the facts hold the seed, the arguments and the results that it was made with."""
    return sha256(repr(sorted(item for item in facts.items() if item[0] != "files")).encode())[:16]


def write_facts(folder: Path, facts: dict) -> None:
    """Write the facts of a folder that is complete but for them; they list its files, see `check_ours`."""
    write_json(folder / FACTS, {**facts, "files": [name for name in contents(folder) if name not in (FACTS, NOTE)]})
    _unlock(folder)


def already_done(output: Path, work: Path, stage: str, arguments: dict, overwrite: bool) -> bool:
    """Whether `output` already holds what `stage` makes with the same arguments.

    If not, `work` is ready, and no other run of this machine's may work there: what was begun there with the same
    arguments is resumed, and with `overwrite` both are cleared first. To be called on the main process first.
    Raises UserError if either was made, or begun, with other arguments, or holds what this project did not write.
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
    if _progress(work):
        logger.info(f"{work}: resumed")
    else:
        write_json(work / NOTE, arguments)
    return False


def is_done(output: Path, work: Path, stage: str, arguments: dict, overwrite: bool = False) -> bool:
    """Whether `output` already holds what `stage` makes with the same arguments; changes nothing, on any process.

    With `overwrite` it is never done. Raises UserError if it was made, or in `work` begun, with other arguments; if
    either holds what this project did not write, where it would be in the way; or if `output` cannot be written.
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
    if not overwrite and _progress(work):
        _refuse_other_arguments(work, {"arguments": read_json(work / NOTE)}, arguments, stage)
    return False


def _progress(work: Path) -> bool:
    """Whether a run that has begun in `work` has left more there than its arguments, with which it may have failed."""
    return (work / NOTE).is_file() and contents(work) != [NOTE]


def clear(folder: Path) -> None:
    """Remove what stages have written into a folder, finished or not, and then the folder if it is empty."""
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
    """Keep other runs of this user and machine from writing `output` until this process ends, however it ends.

    For what is written at the end, without a work folder, where `already_done` does it. Raises UserError if a run is at
    it.
    """
    if is_main_process():
        name = f"atspeed-{os.getuid()}-{sha256(str(output.resolve()).encode())[:16]}.lock"
        _take(Path(gettempdir(), name), output, "choose another output")


def _lock(work: Path) -> None:
    """Keep other runs out of a folder until this process clears it or ends, however it ends."""
    _take(work / LOCK, work, "choose another OUTPUT_DIR")


def _take(path: Path, place: Path, otherwise: str) -> None:
    """Lock the file at `path`, which stands for `place`, unless this process has."""
    if place.resolve() in _held:
        return
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(f"{place}: another run is at work there; wait for it, or {otherwise}") from error
    except OSError:  # a file system that knows no locks
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
    for name in sorted({*made, *arguments}):
        if made.get(name) != arguments.get(name):
            raise UserError(
                f"{folder}: was made with --{name} {made.get(name)}, not {arguments.get(name)}; choose another "
                f"{NAMED_BY.get(stage, 'OUTPUT_DIR')}, or pass --overwrite"
            )
