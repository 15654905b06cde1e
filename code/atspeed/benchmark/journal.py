"""Journal of measured records, written batch by batch, so that an interrupted stage 4 resumes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from atspeed.benchmark.runner import Record
from genrec.runtime.errors import UserError


class Journal:
    """Records of all processes in a folder: a file of JSON lines a process, a line a batch."""

    def __init__(self, folder: Path, process: int):
        """process: the index of this process, which writes a file of its own."""
        self.folder, self.path = folder, folder / f"records-{process}.jsonl"

    def mend(self) -> None:
        """Truncate every file after its last whole line. Call it while no process writes."""
        for path in self.folder.glob("records-*.jsonl"):
            data = path.read_bytes()
            if not data.endswith(b"\n"):
                with path.open("r+b") as file:
                    file.truncate(data.rfind(b"\n") + 1)

    def read(self) -> list[Record]:
        """The records of all processes, by K, then by request. Raises UserError that names a line which is damaged."""
        records = []
        for path in sorted(self.folder.glob("records-*.jsonl")):
            for number, line in enumerate(path.read_bytes().splitlines(), start=1):
                try:
                    records += [Record(**fields) for fields in json.loads(line)]
                except (ValueError, TypeError) as error:
                    raise UserError(
                        f"{path}: line {number} is damaged ({error}); remove the line, to measure its requests again"
                    ) from error
        return sorted(records, key=lambda record: (record.width, record.request))

    def keep(self, records: Iterable[Record]) -> None:
        """Append the records of a batch."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([asdict(record) for record in records]) + "\n")
