"""The 8:1:1 splits of a data set folder, in either of the two released forms."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.data.npy import read_npy_dict
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path, sha256, write_text
from genrec.runtime.text import read_rows

SPLITS = ("train", "valid", "test")
_DICTS = {"train": "training_dict.npy", "valid": "validation_dict.npy", "test": "testing_dict.npy"}
_TEXTS = {split: f"sequential_{split}.txt" for split in SPLITS}

Interactions = dict[int, list[int]]  # user -> items, oldest first


@dataclass(frozen=True)
class Splits:
    """The interactions of each user, oldest first, cut at two points of global time."""

    train: Interactions
    valid: Interactions
    test: Interactions

    def __getitem__(self, split: str) -> Interactions:
        """Returns a split by name. Raises UserError if it does not exist."""
        check_split(split)
        return getattr(self, split)

    def items(self) -> set[int]:
        """Returns all items that occur."""
        return {item for split in SPLITS for items in self[split].values() for item in items}

    @property
    def fingerprint(self) -> str:
        """A hash of the interactions that does not depend on the form they were read from."""
        canonical = [
            [(user, self[split][user]) for user in sorted(self[split]) if self[split][user]] for split in SPLITS
        ]
        return sha256(repr(canonical).encode())[:16]


def check_split(split: str) -> None:
    """Raises UserError for a split that does not exist."""
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")


def load_splits(folder: Path) -> Splits:
    """Loads the three `.npy` dicts or, if they are not all there, the three `sequential_*.txt`.

    Raises UserError that names file, key and value if a file is missing or damaged, a split is empty, a user or an item
    is negative or not an integer, or a user has items to predict but no history.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such data set folder; set DATA_PATH and DATASET, or fetch it: bash data/download.sh"
        )
    absent = {names: [n for n in names if not (folder / n).is_file()] for names in map(_names, (_DICTS, _TEXTS))}
    dicts, texts = absent.values()
    if not dicts:
        read, names = read_npy_dict, _DICTS
    elif not texts:
        read, names = _read_text, _TEXTS
    else:
        missing = dicts if len(dicts) <= len(texts) else texts
        raise UserError(f"{folder / missing[0]}: no such file; a data set needs {', '.join(_names(_DICTS))} or "
                        f"{', '.join(_names(_TEXTS))}")  # fmt: skip
    loaded = {split: _check(folder / name, read(folder / name)) for split, name in names.items()}
    splits = Splits(**loaded)
    _check_histories(folder, names, splits)
    return splits


def seen_items(folder: Path) -> list[int]:
    """Returns the items of the training interactions, in ascending order, of a data set in either layout.

    The layouts are these splits, or the column `item` of train.parquet (see `specgr.data.examples`). Raises UserError
    as `load_splits` does, or if train.parquet has no such column.
    """
    path = folder / "train.parquet"
    if not path.is_file():
        return sorted({item for items in load_splits(folder).train.values() for item in items})
    import pyarrow.parquet

    try:
        return sorted(set(pyarrow.parquet.read_table(path, columns=["item"])["item"].to_pylist()))
    except (pyarrow.ArrowInvalid, KeyError) as error:
        raise UserError(f"{path}: not a Parquet file with a column item ({error}); write it again: bash "
                        "script/specgr_process_data.sh") from error  # fmt: skip


def save_texts(splits: Splits, folder: Path) -> None:
    """Writes `sequential_*.txt`: one line per user, all numbers one higher than in memory."""
    highest = max(max(splits.items(), default=0), *(user for split in SPLITS for user in splits[split]))
    number = [str(n + 1) for n in range(highest + 1)]
    for split, name in _TEXTS.items():
        rows = (" ".join([number[n] for n in (user, *items)]) for user, items in sorted(splits[split].items()))
        write_text(folder / name, "\n".join(rows) + "\n")


def save_dicts(splits: Splits, folder: Path) -> None:
    """Writes the `.npy` dicts of the release, which are pickles."""
    for split, name in _DICTS.items():
        with atomic_path(folder / name) as partial, partial.open("wb") as file:
            np.save(file, splits[split], allow_pickle=True)


def _names(files: dict[str, str]) -> tuple[str, ...]:
    return tuple(files.values())


def _read_text(path: Path) -> dict[int, list[int]]:
    """Reads one line `user item item …` per user, all numbers one higher than in the dicts."""
    interactions = {}
    for number, line in read_rows(path):
        try:
            user, *items = (int(field) - 1 for field in line.split())
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {line[:60]!r} is not a row of integers `user item …`") from error
        if min(user, *items, 0) < 0:
            raise UserError(f"{path}, line {number}: {line[:60]!r} holds a number below 1; they count from 1")
        if user in interactions:
            raise UserError(f"{path}, line {number}: user {user + 1} stands twice; one line a user")
        interactions[user] = items
    return interactions


def _check(path: Path, interactions: dict) -> Interactions:
    checked = {}
    for user, items in interactions.items():
        if not _is_id(user):
            raise UserError(f"{path}: user {user!r} is not an integer >= 0")
        if not isinstance(items, list | tuple):
            raise UserError(f"{path}: user {user}: the items are a {type(items).__name__}, not a list")
        for item in items:
            if not _is_id(item):
                raise UserError(f"{path}: user {user}: item {item!r} is not an integer >= 0")
        checked[user] = list(items)
    if not any(checked.values()):
        raise UserError(f"{path}: the split is empty: no user has an item")
    return checked


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_histories(folder: Path, names: dict[str, str], splits: Splits) -> None:
    first = 1 if names is _TEXTS else 0  # the number of the first user in these files
    for split, histories in (("valid", [splits.train]), ("test", [splits.train, splits.valid])):
        for user, items in splits[split].items():
            if items and not any(history.get(user) for history in histories):
                raise UserError(
                    f"{folder / names[split]}: user {user + first} has items to predict but no history in "
                    f"{names['train']}; drop the user or add the history"
                )
