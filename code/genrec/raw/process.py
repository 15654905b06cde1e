"""From interactions to the 8:1:1 splits of the release: duplicates, k-core, cuts in global time, users, numbers.

The rules are those of the AtSpeed release's `data_process.ipynb`, so that its Beauty comes out of `reviews_Beauty_5`:

- The test split is the last tenth of all interactions by time: its first timestamp is the cut, and interactions *at*
  the cut belong to the later split. So no timestamp lies in two splits, and a split may hold a few more than its share.
- Users with fewer than two training items are dropped after the cut, with their validation and test items; items are
  not filtered again.
- Users are numbered in the order of their raw ids; items too, and then shuffled as the release does it, so that its
  identifiers fit. (Its users are numbered by their first line in the file, which another line order would change.)
"""

import random
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.data.splits import SPLITS, Splits, save_dicts, save_texts
from genrec.raw.records import Records
from genrec.runtime.errors import UserError

SHUFFLE = 2023  # the seed with which the release numbers items


@dataclass(frozen=True)
class ProcessingSettings:
    """The filters of interactions, and the shares of the splits."""

    user_core: int = 0  # interactions that a user, or an item, must have among those that are kept
    item_core: int = 0
    ratios: tuple[float, ...] = (8.0, 1.0, 1.0)  # of training, validation and test interactions
    min_train_items: int = 2
    keep_duplicates: bool = False  # else a user's first interaction with an item stands for all

    def check(self) -> None:
        """Raises UserError for a value that makes no sense, by its flag."""
        if len(self.ratios) != len(SPLITS):
            raise UserError(f"--ratios {','.join(f'{r:g}' for r in self.ratios)}: pass three numbers, such as 8,1,1")


@dataclass(frozen=True)
class Processed:
    records: Records  # what is left, by the numbers of the data set, in the order of global time
    split: np.ndarray  # (n,) int8, index into SPLITS
    cuts: tuple[int, int]  # the first microsecond of validation, and of test
    kept: Records  # what was cut: rating, duplicates and core are done, users not yet dropped
    duplicates: int  # interactions that were left out as such
    outside_core: int

    def splits(self) -> Splits:
        """User -> items by split, for every user in each of them."""
        n_users, shared = len(self.records.users), list(range(len(self.records.items)))
        by_user = []
        for index in range(len(SPLITS)):
            part = self.records.take(self.split == index)
            # All lists share one integer an item, which is a fifth of the memory.
            items = [shared[item] for item in part.item[np.argsort(part.user, kind="stable")].tolist()]
            ends = [0, *np.cumsum(np.bincount(part.user, minlength=n_users)).tolist()]
            by_user.append({user: items[ends[user] : ends[user + 1]] for user in range(n_users)})
        return Splits(*by_user)

    def save(self, splits: Splits, folder: Path) -> None:
        """Write the released layout (`splits` are its own), and as Parquet the interactions and what ids were."""
        save_dicts(splits, folder)
        save_texts(splits, folder)
        r = self.records
        interactions = {
            "user": r.user,
            "item": r.item,
            "timestamp": pa.array(r.timestamp, pa.timestamp("us", "UTC")),
            "rating": pa.array(r.rating, from_pandas=True),  # null where there is none
            "split": pa.DictionaryArray.from_arrays(self.split, list(SPLITS)),
        }
        pq.write_table(pa.table(interactions), folder / "interactions.parquet")
        for name, ids in (("user", r.users), ("item", r.items)):
            numbers = np.arange(len(ids), dtype=np.int32)
            pq.write_table(pa.table({name: numbers, "raw_id": pa.array(ids, pa.string())}), folder / f"{name}s.parquet")


def process(records: Records, settings: ProcessingSettings) -> Processed:
    """Raises UserError, which says why, if a split or everything is empty."""
    distinct = records if settings.keep_duplicates else without_duplicates(records)
    kept = core(distinct, settings.user_core, settings.item_core)
    if not len(kept):
        raise UserError(
            f"--user_core {settings.user_core}, --item_core {settings.item_core}: none of {len(distinct):,} "
            "interactions is left; pass less"
        )
    cuts = cut_times(kept.timestamp, settings.ratios)
    split = np.searchsorted(cuts, kept.timestamp, side="right").astype(np.int8)
    trained = np.bincount(kept.user[split == 0], minlength=len(kept.users))
    stays = (trained >= settings.min_train_items)[kept.user]
    for index, name in enumerate(SPLITS):
        if not (stays & (split == index)).any():
            raise UserError(
                f"the {name} split is empty: {len(kept):,} interactions, cut at {moment(cuts[0])} and "
                f"{moment(cuts[1])}, have none there of users with {settings.min_train_items} training items; pass "
                "more data or other --ratios"
            )
    return Processed(
        numbered(kept.take(stays)), split[stays], cuts, kept, len(records) - len(distinct), len(distinct) - len(kept)
    )


def without_duplicates(records: Records) -> Records:
    """Each user's first interaction with an item."""
    pairs = records.user.astype(np.int64) * len(records.items) + records.item
    _, first = np.unique(pairs, return_index=True)
    return records.take(np.sort(first))


def core(records: Records, user_core: int, item_core: int) -> Records:
    """The largest part in which every user and every item has so many interactions."""
    while len(records):
        users, items = np.bincount(records.user), np.bincount(records.item)
        stays = (users[records.user] >= user_core) & (items[records.item] >= item_core)
        if stays.all():
            break
        records = records.take(stays)
    return records


def cut_times(timestamp: np.ndarray, ratios: tuple[float, ...]) -> tuple[int, int]:
    """timestamp: (n,), ascending. The first timestamp of validation, and of test: counted from the end, as the release.

    Raises UserError if there are too few interactions to cut.
    """
    n, total = len(timestamp), sum(ratios)
    test, valid = int(n * ratios[2] / total), int(n * ratios[1] / total)
    if not (test and valid):
        raise UserError(f"{n} interactions are too few to cut by {':'.join(f'{ratio:g}' for ratio in ratios)}")
    return int(timestamp[n - test - valid]), int(timestamp[n - test])


def numbered(records: Records) -> Records:
    """The same interactions, with users and items that occur numbered from 0."""
    users, items = occurring(records.user), occurring(records.item)
    order = list(range(len(items)))
    random.Random(SHUFFLE).shuffle(order)  # number -> place among the raw ids that occur
    numbers = []
    for ids, kept in ((records.users, users), (records.items, items[order])):
        number = np.zeros(len(ids), np.int32)
        number[kept] = np.arange(len(kept))
        numbers.append(number)
    return replace(
        records,
        user=numbers[0][records.user],
        item=numbers[1][records.item],
        users=records.users[users],
        items=records.items[items[order]],
    )


def occurring(ids: np.ndarray) -> np.ndarray:
    """The distinct ones of (n,) small integers, ascending."""
    return np.flatnonzero(np.bincount(ids))


def moment(microseconds: int) -> str:
    """Such as `1394409600 (2014-03-10 00:00:00 UTC)`."""
    seconds = microseconds / 1e6
    number = f"{microseconds // 10**6}" if microseconds % 10**6 == 0 else f"{seconds:.6f}"
    try:
        return f"{number} ({datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S} UTC)"
    except (OverflowError, OSError, ValueError):  # beyond the calendar
        return number
