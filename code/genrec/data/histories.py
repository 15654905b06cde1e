"""Users and their histories: of a split, or of JSON lines, CSV or Parquet, row by row, so that memory does not grow."""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from genrec.data.dataset import load_dataset
from genrec.runtime.errors import UserError
from genrec.runtime.files import file_sha256, sha256

USER, HISTORY = "user", "history"
FORMS = (".jsonl", ".json", ".csv", ".parquet")
Row = tuple[object, list]  # the user, and the items of the history, oldest first


@dataclass(frozen=True)
class UserCount:
    """The users of a source."""

    users: int
    numbered: bool  # all of them are integers


class UserSource(ABC):
    """Users and their histories, in an order that stays."""

    @abstractmethod
    def rows(self, start: int = 0) -> Iterator[Row]:
        """The rows from number `start` on. Raises UserError that names the place of what cannot be read."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of all rows."""

    @abstractmethod
    def absolute(self) -> UserSource:
        """The same, for processes that run elsewhere."""

    def check(self, problem: Callable[[list], str | None]) -> UserCount:
        """Read all rows and count them. problem: of a history, what is wrong with it, or None.

        Raises UserError for the first row that has one, or if there is no row.
        """
        rows, numbered = 0, True
        for rows, (user, history) in enumerate(self.rows(), start=1):
            numbered = numbered and isinstance(user, int)
            if said := problem(history):
                raise UserError(f"{self}, user {user!r} (row {rows}): {said}")
        if not rows:
            raise UserError(f"{self}: holds no user")
        return UserCount(rows, numbered)


def open_users(
    histories: str | None, dataset: str | None, data_path: str, split: str, index: str | None = None
) -> UserSource:
    """The users of a file, or of a split of a data set. Raises UserError if not one of the two is given."""
    if (histories is None) == (dataset is None):
        raise UserError("give --histories FILE, or --dataset and --split, one of the two")
    return HistoryFile(Path(histories)) if histories is not None else SplitUsers(data_path, str(dataset), index, split)


@dataclass(frozen=True)
class SplitUsers(UserSource):
    """The users of a split of a data set, each with what it had seen before."""

    data_path: str
    dataset: str
    index: str | None
    split: str

    def __str__(self) -> str:
        return f"{self.data_path}/{self.dataset}, {self.split}"

    def rows(self, start: int = 0) -> Iterator[Row]:
        samples = load_dataset(self.data_path, self.dataset, self.index).samples(self.split, max_history=None)
        return ((sample.user, list(sample.history)) for sample in samples[start:])

    def absolute(self) -> SplitUsers:
        index = self.index and str(Path(self.index).absolute())
        return replace(self, data_path=str(Path(self.data_path).absolute()), index=index)

    def fingerprint(self) -> str:
        return sha256(repr(list(self.rows())).encode())


@dataclass(frozen=True)
class HistoryFile(UserSource):
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
        read = {".csv": self._csv, ".parquet": self._parquet}.get(self.path.suffix, self._json)
        return read(start)

    def __str__(self) -> str:
        return str(self.path)

    def absolute(self) -> HistoryFile:
        return HistoryFile(self.path.absolute())

    def fingerprint(self) -> str:
        return file_sha256(self.path)

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
