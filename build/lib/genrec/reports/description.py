"""Statistics of a data set, to look at before training."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from genrec.data.catalogue import Catalogue, Identifier
from genrec.data.dataset import Dataset
from genrec.data.splits import SPLITS, Interactions, Splits
from genrec.runtime.errors import UserError

INTERACTIONS = "interactions.parquet"
LATEST = 10**11  # seconds, in the year 5138; times in milliseconds exceed it
_NO_CAP = 2**62  # items, more than any history has


def history_lengths(data: Dataset, split: str) -> np.ndarray:
    """Returns the history length of each sample (n_samples,), without the cap of `max_history`."""
    return np.array([len(sample.history) for sample in data.samples(split, max_history=_NO_CAP)], dtype=np.int64)


def popularity(interactions: Interactions) -> np.ndarray:
    """Returns the number of interactions of every item that occurs (n_items,), descending."""
    return _descending(Counter(item for items in interactions.values() for item in items))


def share_of_most_popular(counts: np.ndarray, n_items: int, share: float) -> float:
    """Returns the share of interactions with the `share` most popular of `n_items`. counts: from `popularity`."""
    return float(counts[: round(share * n_items)].sum() / counts.sum())


def code_use(catalogue: Catalogue) -> list[np.ndarray]:
    """Returns, for every level, the number of items per code (n_codes,), descending."""
    return [_descending(Counter(column)) for column in zip(*catalogue.identifiers.values(), strict=True)]


def perplexity(counts: np.ndarray) -> float:
    """Returns exp of the entropy: as many codes, used equally often, would be as hard to guess."""
    shares = counts / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def children(catalogue: Catalogue) -> list[np.ndarray]:
    """Returns, for every length 0 … L - 1, how many codes may follow each prefix (n_prefixes,), descending."""
    prefixes = [{identifier[:length] for identifier in catalogue.items_of} for length in range(1, catalogue.levels + 1)]
    return [_descending(Counter(prefix[:-1] for prefix in longer)) for longer in prefixes]


def items_below(catalogue: Catalogue, length: int, interactions: Interactions | None = None) -> float:
    """Returns the mean number of items per prefix of `length` codes, over prefixes or over `interactions` if given."""
    below = Counter(identifier[:length] for identifier in catalogue.identifiers.values())
    if interactions is None:
        return len(catalogue.identifiers) / len(below)
    chosen = [below[catalogue.identifiers[item][:length]] for items in interactions.values() for item in items]
    return sum(chosen) / len(chosen)


def shared_identifiers(catalogue: Catalogue) -> dict[Identifier, list[int]]:
    """Returns the identifiers that several items share, those with the most items first."""
    several = [(identifier, items) for identifier, items in catalogue.items_of.items() if len(items) > 1]
    return dict(sorted(several, key=lambda pair: (-len(pair[1]), pair[1])))


def read_times(folder: Path, splits: Splits) -> dict[str, np.ndarray] | None:
    """Returns the times of the interactions of every split, (n,) datetime64[s].

    None if there is no interactions.parquet, as in the released data, which hold the order alone.
    Raises UserError that names the file if it is damaged, lacks a column, or is not of these splits.
    """
    path = folder / INTERACTIONS
    if not path.is_file():
        return None
    try:
        names = pyarrow.parquet.read_schema(path).names
        if absent := {"timestamp", "split"} - set(names):
            raise UserError(f"{path}: has no column {min(absent)} (only {', '.join(names)}); write it again")
        table = pyarrow.parquet.read_table(path, columns=["timestamp", "split"])
        if absent := table["timestamp"].null_count:
            raise UserError(f"{path}: {absent} of {len(table)} rows have no timestamp; write it again")
        times = {s: table.filter(pyarrow.compute.equal(table["split"], s))["timestamp"].to_numpy() for s in SPLITS}
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a Parquet file that can be read ({error}); write it again") from error
    for split, found in times.items():
        expected = sum(map(len, splits[split].values()))
        if len(found) != expected:
            raise UserError(
                f"{path}: holds {len(found)} interactions of the split {split}, but the splits beside it hold "
                f"{expected}; write all of them again"
            )
    return {split: _datetimes(path, found) for split, found in times.items()}


def _datetimes(path: Path, times: np.ndarray) -> np.ndarray:
    """Converts datetimes, or whole seconds since 1970, to (n,) datetime64[s]."""
    if times.dtype.kind != "M" and (times.dtype.kind != "i" or times.max() > LATEST):
        raise UserError(
            f"{path}: the column timestamp holds {times.dtype} such as {times[0]}, neither times nor whole seconds "
            "since 1970; write it again"
        )
    return times.astype("datetime64[s]")


def _descending(counts: Counter) -> np.ndarray:
    return np.array(sorted(counts.values(), reverse=True), dtype=np.int64)
