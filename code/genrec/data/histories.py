"""Files of users and their histories: JSON lines, CSV or Parquet, read row by row, so that memory does not grow."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from genrec.data.dataset import load_dataset
from genrec.runtime.errors import UserError

USER, HISTORY = "user", "history"
FORMS = (".jsonl", ".json", ".csv", ".parquet")
Row = tuple[object, list]  # the user, and the items of the history, oldest first


def rows_of_split(data_path: str, dataset: str, index: str | None, split: str) -> list[Row]:
    """The users of a split of a data set, with what they had seen before it."""
    samples = load_dataset(data_path, dataset, index).samples(split)
    return [(sample.user, list(sample.history)) for sample in samples]


@dataclass(frozen=True)
class HistoryFile:
    """A row a user: `user`, an integer or a text, and `history`, its items, oldest first.

    In CSV the items of a history stand in one field, with spaces or commas between them.
    """

    path: Path

    def __post_init__(self) -> None:
        if self.path.suffix not in FORMS:
            raise UserError(f"{self.path}: give a file of {', '.join(FORMS)} with the columns {USER} and {HISTORY}")
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file")

    def rows(self, start: int = 0) -> Iterator[Row]:
        """The rows from number `start` on. Raises UserError that names the line of what cannot be read."""
        read = {".csv": self._csv, ".parquet": self._parquet}.get(self.path.suffix, self._json)
        return read(start)

    def check(self, problem: Callable[[list], str | None]) -> int:
        """The number of rows, all of which are read. problem: of a history, what is wrong with it, or None.

        Raises UserError for the first row that has one, or if there is no row.
        """
        rows = 0
        for rows, (user, history) in enumerate(self.rows(), start=1):
            if said := problem(history):
                raise UserError(f"{self.path}, user {user!r} (row {rows}): {said}")
        if not rows:
            raise UserError(f"{self.path}: holds no user")
        return rows

    def _json(self, start: int) -> Iterator[Row]:
        with self.path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(islice(file, start, None), start=start + 1):
                try:
                    row = json.loads(line)
                    user, history = row[USER], row[HISTORY]
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(f"{self.path}, line {number}: is no JSON object of {USER} and {HISTORY}") from error
                yield self._whole(number, user, history)

    def _csv(self, start: int) -> Iterator[Row]:
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file)
            if lacking := {USER, HISTORY} - set(lines.fieldnames or ()):
                raise UserError(f"{self.path}: has no column {min(lacking)}; it needs {USER} and {HISTORY}")
            for number, row in enumerate(islice(lines, start, None), start=start + 2):
                items = (row[HISTORY] or "").replace(",", " ").split()
                yield self._whole(number, row[USER], [int(item) if item.isdecimal() else item for item in items])

    def _parquet(self, start: int) -> Iterator[Row]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(self.path)
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{self.path}: cannot be read as Parquet ({error})") from error
        if lacking := {USER, HISTORY} - set(file.schema_arrow.names):
            raise UserError(f"{self.path}: has no column {min(lacking)}; it needs {USER} and {HISTORY}")
        before = 0
        for batch in file.iter_batches(columns=[USER, HISTORY]):
            if before + len(batch) > start:
                kept = batch.slice(max(start - before, 0))
                users, histories = kept[USER].to_pylist(), kept[HISTORY].to_pylist()
                for number, row in enumerate(zip(users, histories, strict=True), start=max(start, before) + 1):
                    yield self._whole(number, *row)
            before += len(batch)

    def _whole(self, number: int, user: object, history: object) -> Row:
        if user is None or user == "" or not isinstance(history, list):
            raise UserError(f"{self.path}, row {number}: needs a {USER} and a {HISTORY}, a list of items")
        return user, history
