"""Journal of what a program has measured, written batch by batch, so that one that was interrupted resumes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Generic, TypeVar

from atspeed.processes import this_process
from genrec.runtime.artefacts import already_done
from genrec.runtime.errors import UserError

Row = TypeVar("Row")


class Journal(Generic[Row]):
    """Records of all processes in a folder: a file of JSON lines a process, a line a batch."""

    def __init__(self, folder: Path, process: int, kind: type[Row], *key: str):
        """process: the index of this process, which writes a file of its own. kind: the dataclass of the records, whose
        values are those of JSON. key: the fields, two or more, that say what a record is of, and by which they are
        sorted."""
        self.folder, self.path = folder, folder / f"records-{process}.jsonl"
        self.kind, self.key = kind, attrgetter(*key)

    def mend(self) -> None:
        """Truncate every file after its last whole line. Call it while no process writes."""
        for path in self.folder.glob("records-*.jsonl"):
            data = path.read_bytes()
            if not data.endswith(b"\n"):
                with path.open("r+b") as file:
                    file.truncate(data.rfind(b"\n") + 1)

    def read(self) -> list[Row]:
        """The records of all processes, sorted. Raises UserError that names a line which is damaged."""
        records = []
        for path in sorted(self.folder.glob("records-*.jsonl")):
            for number, line in enumerate(path.read_bytes().splitlines(), start=1):
                try:
                    records += [self.kind(**fields) for fields in json.loads(line)]
                except (ValueError, TypeError) as error:
                    raise UserError(
                        f"{path}: line {number} is damaged ({error}); remove the line, to measure its requests again"
                    ) from error
        return sorted(records, key=self.key)

    def keep(self, records: Iterable[Row]) -> None:
        """Append the records of a batch."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([vars(record) for record in records]) + "\n")


def open_journal(
    output: Path, work: Path, stage: str, made_of: dict, overwrite: bool, kind: type[Row], *key: str
) -> tuple[Journal[Row], set[tuple]] | None:
    """The journal of a run that may have been interrupted, and the keys of its records; None if `output` is done.

    To be called by all processes. output, work, stage, made_of, overwrite: see `already_done`. kind, key:
    see `Journal`.
    """
    state = this_process()
    journal = Journal(work, state.process_index, kind, *key)
    with state.main_process_first():
        if already_done(output, work, stage, made_of, overwrite):
            return None
        if state.is_main_process:
            journal.mend()
        done = set(map(journal.key, journal.read()))
    state.wait_for_everyone()
    return journal, done
