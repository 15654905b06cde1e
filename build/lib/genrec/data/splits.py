"""The splits of a data set folder: interactions in one of three forms, or samples."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.data.npy import read_npy_dict
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path, sha256, write_text
from genrec.runtime.text import read_json, read_rows

SPLITS = ("train", "valid", "test")
_DICTS = {"train": "training_dict.npy", "valid": "validation_dict.npy", "test": "testing_dict.npy"}
_TEXTS = {split: f"sequential_{split}.txt" for split in SPLITS}

_SAMPLES = {split: f"{split}.parquet" for split in SPLITS}
INTER = ".inter.json"  # of LC-Rec and LETTER: user -> items, oldest first

Interactions = dict[int, list[int]]  # user -> items, oldest first
SampleRow = tuple[int, list[int], int]  # user, history (oldest first), the item that followed


@dataclass(frozen=True)
class Splits:
    """The interactions of each user, oldest first, in three parts."""

    train: Interactions
    valid: Interactions
    test: Interactions
    samples: dict[str, list[SampleRow]] | None = None  # of each split, where they are given and not to be derived

    def __getitem__(self, split: str) -> Interactions:
        """Returns a split by name. Raises UserError if it does not exist."""
        check_split(split)
        return getattr(self, split)

    def items(self) -> set[int]:
        """Returns all items that occur."""
        return {item for split in SPLITS for items in self[split].values() for item in items}

    @property
    def fingerprint(self) -> str:
        """A hash of the interactions, or of given samples, that does not depend on the form they were read from."""
        if self.samples is not None:
            return sha256(repr([self.samples[split] for split in SPLITS]).encode())[:16]
        canonical = [
            [(user, self[split][user]) for user in sorted(self[split]) if self[split][user]] for split in SPLITS
        ]
        return sha256(repr(canonical).encode())[:16]


def check_split(split: str) -> None:
    """Raises UserError for a split that does not exist."""
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")


def load_splits(folder: Path) -> Splits:
    """Loads a data set's splits: the three `.npy` dicts or, if they are not all there, the three `sequential_*.txt`; or
    train.parquet, valid.parquet and test.parquet, of samples; or one NAME.inter.json, cut by `leave_one_out`.

    Raises UserError that names file, key and value if a file is missing or damaged, a split is empty, a user or an item
    is negative or not an integer, or a user has items to predict but no history.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such data set folder; set DATA_PATH and DATASET, or fetch it: bash data/download.sh"
        )
    absent = [[n for n in layout.values() if not (folder / n).is_file()] for layout in (_DICTS, _TEXTS, _SAMPLES)]
    dicts, texts, samples = absent
    inter = sorted(folder.glob(f"*{INTER}"))
    if not dicts:
        read, names = read_npy_dict, _DICTS
    elif not texts:
        read, names = _read_text, _TEXTS
    elif not samples:
        return load_samples(folder)
    elif len(inter) == 1:
        return _checked(inter[0], leave_one_out(read_inter(inter[0])))
    else:
        missing = min(absent, key=len)
        raise UserError(
            f"{folder / missing[0]}: no such file; a data set needs {', '.join(_DICTS.values())} or "
            f"{', '.join(_TEXTS.values())} or {', '.join(_SAMPLES.values())} or one NAME{INTER}"
            + (f", and here are {len(inter)} of these" if inter else "")
        )
    loaded = {split: _check(folder / name, read(folder / name)) for split, name in names.items()}
    splits = Splits(**loaded)
    _check_histories(folder, names, splits)
    return splits


def leave_one_out(sequences: Interactions) -> Splits:
    """The custom of the field: a user's last item is the test, the one before it the validation, the others are
    training. Users with fewer than three items have training items alone."""
    cut = {user: len(items) if len(items) < 3 else len(items) - 2 for user, items in sequences.items()}
    return Splits(
        {user: items[: cut[user]] for user, items in sequences.items()},
        {user: items[cut[user] : cut[user] + 1] for user, items in sequences.items()},
        {user: items[cut[user] + 1 :] for user, items in sequences.items()},
    )


def read_inter(path: Path) -> Interactions:
    """Reads a JSON object user -> [item, …], oldest first, of LC-Rec and LETTER. Raises UserError for anything else."""
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: not a JSON object that maps users to lists of items")
    try:
        sequences = {int(user): items for user, items in content.items()}
    except ValueError as error:
        raise UserError(f"{path}: user {str(error).rpartition(': ')[2]} is not an integer") from error
    return _check(path, sequences)


def _checked(path: Path, splits: Splits) -> Splits:
    """Raises UserError if a split is empty."""
    for split in SPLITS:
        if not any(splits[split].values()):
            raise UserError(f"{path}: no user has the three items that leave-one-out needs: the {split} split is empty")
    return splits


def load_samples(folder: Path) -> Splits:
    """Loads train.parquet, valid.parquet and test.parquet: the columns user, history (items, oldest first) and item, a
    row a sample. A row without a history is an interaction, and no sample."""
    samples = {split: _read_samples(folder / name) for split, name in _SAMPLES.items()}
    of_users = {split: _interactions(rows, first=split == "train") for split, rows in samples.items()}
    kept = {split: [row for row in rows if row[1]] for split, rows in samples.items()}
    for split, rows in kept.items():
        if not rows:
            raise UserError(f"{folder / _SAMPLES[split]}: the split is empty: no row has a history")
    return Splits(**of_users, samples=kept)


def _interactions(rows: list[SampleRow], first: bool) -> Interactions:
    """What users did, by their samples in order: each adds its item; with `first` a user's first its history too."""
    found: Interactions = {}
    for user, history, item in rows:
        found.setdefault(user, [*history] if first else []).append(item)
    return found


def _read_samples(path: Path) -> list[SampleRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error}); write it again") from error
    if lacking := {"history", "item"} - set(table.column_names):
        raise UserError(f"{path}: has no column {min(lacking)}; samples have user, history and item")
    histories, items = table["history"].to_pylist(), table["item"].to_pylist()
    users = table["user"].to_pylist() if "user" in table.column_names else range(len(items))
    numbers = {user: number for number, user in enumerate(sorted(set(users), key=str))}
    whole = all(_is_id(user) for user in numbers)
    rows = []
    for number, (user, history, item) in enumerate(zip(users, histories, items, strict=True), start=1):
        for each in (item, *history):
            if not _is_id(each):
                raise UserError(f"{path}, row {number}: item {each!r} is not an integer >= 0")
        rows.append((user if whole else numbers[user], history, item))
    return rows


def seen_items(folder: Path) -> list[int]:
    """Returns the items of the training interactions, in ascending order. Raises UserError as `load_splits` does."""
    if (path := folder / _SAMPLES["train"]).is_file():  # samples, of which the items to predict are the interactions
        import pyarrow
        import pyarrow.parquet

        try:
            return sorted(set(pyarrow.parquet.read_table(path, columns=["item"])["item"].to_pylist()))
        except (pyarrow.ArrowInvalid, KeyError) as error:
            raise UserError(f"{path}: not a Parquet file with a column item ({error}); write it again: bash "
                            "script/specgr_process_data.sh") from error  # fmt: skip
    return sorted({item for items in load_splits(folder).train.values() for item in items})


def save_texts(splits: Splits, folder: Path) -> None:
    """Writes `sequential_*.txt`: one line per user, all numbers one higher than in memory."""
    highest = max(max(splits.items(), default=0), *(user for split in SPLITS for user in splits[split]))
    number = [str(n + 1) for n in range(highest + 1)]
    for split, name in _TEXTS.items():
        rows = (" ".join([number[n] for n in (user, *items)]) for user, items in sorted(splits[split].items()))
        write_text(folder / name, "\n".join(rows) + "\n")


def save_samples(samples: dict[str, list[SampleRow]], folder: Path) -> None:
    """Writes train.parquet, valid.parquet and test.parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema({"user": pa.int64(), "history": pa.list_(pa.int64()), "item": pa.int64()})
    for split, name in _SAMPLES.items():
        users, histories, items = zip(*samples[split], strict=True) if samples[split] else ((), (), ())
        with atomic_path(folder / name) as partial:
            pq.write_table(pa.table([users, histories, items], schema=schema), partial)


def save_dicts(splits: Splits, folder: Path) -> None:
    """Writes the `.npy` dicts of the release, which are pickles."""
    for split, name in _DICTS.items():
        with atomic_path(folder / name) as partial, partial.open("wb") as file:
            np.save(file, splits[split], allow_pickle=True)


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
