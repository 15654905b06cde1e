"""Journal of what a program has measured, written batch by batch, so that one that was interrupted resumes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Generic, TypeVar

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

    def done(self) -> set[tuple]:
        """The keys of all records."""
        return set(map(self.key, self.read()))

    def keep(self, records: Iterable[Row]) -> None:
        """Append the records of a batch."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([vars(record) for record in records]) + "\n")
