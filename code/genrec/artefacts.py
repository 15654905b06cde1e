"""What a stage leaves behind carries its facts, and the next stage reads them: nothing is typed twice."""

import importlib.metadata
import logging
import platform
import shutil
import sys
import time
from pathlib import Path

from genrec.cli import is_main_process
from genrec.errors import UserError
from genrec.files import read_json, sha256, write_json

logger = logging.getLogger(__name__)

FACTS = "facts.json"
NOTE = "arguments.json"  # of what is begun


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
        raise UserError(f"{folder}: not there, or not finished; it is written by: bash script/{script}.sh")
    facts = read_json(folder / FACTS)
    stages = (stage,) if isinstance(stage, str) else stage
    if not isinstance(facts, dict) or facts.get("stage") not in stages:
        written = facts.get("stage") if isinstance(facts, dict) else "something else"
        raise UserError(f"{folder}: was written by {written}, but the output of {' or '.join(stages)} is needed here")
    return facts


def fingerprint(facts: dict) -> str:
    """Identifies an artefact: the facts hold the seed, the arguments and the results that it was made with."""
    return sha256(repr(sorted(facts.items())).encode())[:16]


def already_done(output: Path, work: Path, stage: str, arguments: dict, overwrite: bool) -> bool:
    """Whether `output` already holds what `stage` makes with the same arguments.

    If not, `work` is ready: what was begun there with the same arguments is resumed, and with `overwrite` both are
    cleared first. To be called on the main process first.
    Raises UserError if either was made, or begun, with other arguments.
    """
    if overwrite and is_main_process():
        for folder in (output, work):
            if folder.exists():
                logger.info(f"{folder}: removed (--overwrite)")
                shutil.rmtree(folder)
    if is_done(output, work, stage, arguments):
        return True
    note = work / NOTE
    if note.is_file():
        logger.info(f"{work}: resumed")
    else:
        write_json(note, arguments)
    return False


def is_done(output: Path, work: Path, stage: str, arguments: dict) -> bool:
    """Whether `output` already holds what `stage` makes with the same arguments; changes nothing, on any process.

    Raises UserError if it was made, or in `work` begun, with other arguments.
    """
    if (output / FACTS).is_file():
        _refuse_other_arguments(output, read_facts(output, stage, stage)["arguments"], arguments)
        logger.info(f"{output}: done already, nothing to do")
        return True
    if (work / NOTE).is_file():
        _refuse_other_arguments(work, read_json(work / NOTE), arguments)
    return False


def _refuse_other_arguments(folder: Path, made: dict, arguments: dict) -> None:
    for name in sorted({*made, *arguments}):
        if made.get(name) != arguments.get(name):
            raise UserError(
                f"{folder}: was made with --{name} {made.get(name)}, not {arguments.get(name)}; choose another "
                "OUTPUT_DIR, or pass --overwrite"
            )
