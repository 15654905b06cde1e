"""Processing of interactions into splits: duplicates, k-core, cut, user filter, numbering.

By time, the rules are those of `data_process.ipynb` in the AtSpeed release and reproduce its Beauty from
`reviews_Beauty_5`:

- The test split is the last tenth of all interactions by time. Its first timestamp is the cut; interactions *at* the
  cut belong to the later split, so no timestamp occurs in two splits and a split may slightly exceed its share.
- Users with fewer than two training items are dropped after the cut, with their validation and test items. Items are
  not filtered again.
- Users are numbered in the order of their raw ids. So are items, which are then shuffled as in the release, so that its
  identifiers fit. (The release numbers users by their first line in the file, which depends on the order of lines.)

Leave-one-out is the custom of the field: a user's last item is the test, the one before it the validation. Files that
are split already keep their split. Where items have identifiers, their raw ids are the numbers of these, and stay.
"""

import random
from collections.abc import Mapping, Sequence
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
TIME, LEAVE_ONE_OUT, GIVEN = "time", "leave_one_out", "given"
CUTS = (TIME, LEAVE_ONE_OUT, GIVEN)


@dataclass(frozen=True)
class ProcessingSettings:
    """The filters of interactions and how they are split."""

    split: str = TIME  # one of CUTS
    user_core: int = 0  # minimum interactions of each user among those kept
    item_core: int = 0  # the same for each item
    ratios: tuple[float, ...] = (8.0, 1.0, 1.0)  # of training, validation and test interactions
    min_train_items: int = 2
    keep_duplicates: bool = False  # False: only a user's first interaction with an item is kept

    def check(self) -> None:
        """Raises UserError that names the flag if there are not three ratios, or there is no such cut."""
        if self.split not in CUTS:
            raise UserError(f"--split {self.split}: choose from {', '.join(CUTS)}")
        if len(self.ratios) != len(SPLITS):
            raise UserError(f"--ratios {','.join(f'{r:g}' for r in self.ratios)}: pass three numbers, such as 8,1,1")


@dataclass(frozen=True)
class Processed:
    records: Records  # the final interactions, numbered, in the order of global time
    split: np.ndarray  # (n,) int8, index into SPLITS
    cuts: tuple[int, int] | None  # first timestamp of validation and of test, in microseconds, of a cut in time
    kept: Records  # interactions that were split: filtered, but before users are dropped
    duplicates: int  # number of interactions removed as duplicates
    outside_core: int  # number of interactions removed by the core filter

    def splits(self) -> Splits:
        """Returns user -> items for each split; every split contains every user."""
        n_users, shared = len(self.records.users), list(range(len(self.records.items)))
        by_user = []
        for index in range(len(SPLITS)):
            part = self.records.take(self.split == index)
            # All lists share one int object per item, which takes a fifth of the memory.
            items = [shared[item] for item in part.item[np.argsort(part.user, kind="stable")].tolist()]
            ends = [0, *np.cumsum(np.bincount(part.user, minlength=n_users)).tolist()]
            by_user.append({user: items[ends[user] : ends[user + 1]] for user in range(n_users)})
        return Splits(*by_user)

    def save(self, splits: Splits, folder: Path, timed: bool, titles: Mapping[int, str]) -> None:
        """Writes the result of `splits()` in the released layout, and raw ids as Parquet; interactions too, where they
        have times. titles: item -> title, of the items that have one."""
        save_dicts(splits, folder)
        save_texts(splits, folder)
        r = self.records
        save_names(folder, r.users, r.items, titles)
        if not timed:
            return
        interactions = {
            "user": r.user,
            "item": r.item,
            "timestamp": pa.array(r.timestamp, pa.timestamp("us", "UTC")),
            "rating": pa.array(r.rating, from_pandas=True),  # null where there is none
            "split": pa.DictionaryArray.from_arrays(self.split, list(SPLITS)),
        }
        pq.write_table(pa.table(interactions), folder / "interactions.parquet")


def save_names(folder: Path, users: np.ndarray, items: np.ndarray, titles: Mapping[int, str]) -> None:
    """Writes users.parquet and items.parquet: number, raw id and, where some are known, title."""
    for name, ids in (("user", users), ("item", items)):
        columns = {name: np.arange(len(ids), dtype=np.int32), "raw_id": pa.array(ids, pa.string())}
        if name == "item" and titles:
            columns["title"] = pa.array([titles.get(number) for number in range(len(ids))], pa.string())
        pq.write_table(pa.table(columns), folder / f"{name}s.parquet")


def process(
    records: Records, settings: ProcessingSettings, parts: Sequence[str | None] = (), n_items: int | None = None
) -> Processed:
    """Filters, splits and numbers interactions. parts: the split of each file, where they are split already. n_items:
    raw item ids are numbers below this, and stay; None: items are numbered anew.

    Raises UserError that says why if a split or everything is empty.
    """
    distinct = records if settings.keep_duplicates else without_duplicates(records)
    kept = core(distinct, settings.user_core, settings.item_core)
    if not len(kept):
        raise UserError(
            f"--user_core {settings.user_core}, --item_core {settings.item_core}: none of {len(distinct):,} "
            "interactions is left; pass less"
        )
    cuts = cut_times(kept.timestamp, settings.ratios) if settings.split == TIME else None
    if cuts is not None:
        split = np.searchsorted(cuts, kept.timestamp, side="right").astype(np.int8)
    elif settings.split == LEAVE_ONE_OUT:
        split = last_two(kept.user)
    else:
        split = np.array([SPLITS.index(part or "train") for part in parts], np.int8)[kept.file]
    trained = np.bincount(kept.user[split == 0], minlength=len(kept.users))
    stays = (trained >= settings.min_train_items)[kept.user]
    for index, name in enumerate(SPLITS):
        if not (stays & (split == index)).any():
            cut = f", cut at {moment(cuts[0])} and {moment(cuts[1])}," if cuts else ""
            raise UserError(
                f"the {name} split is empty: {len(kept):,} interactions{cut} have none there of users with "
                f"{settings.min_train_items} training items; pass more data or other --ratios"
            )
    return Processed(
        numbered(kept.take(stays), n_items), split[stays], cuts, kept, len(records) - len(distinct),
        len(distinct) - len(kept),
    )  # fmt: skip


def last_two(user: np.ndarray) -> np.ndarray:
    """Returns the split (n,) int8 of each interaction by leave-one-out. user: (n,), in the order of time.

    Users with fewer than three interactions have training interactions alone.
    """
    order = np.argsort(user, kind="stable")
    counts = np.bincount(user)
    ends = np.cumsum(counts)
    place = np.arange(len(user)) - np.repeat(ends - counts, counts)  # of each interaction among those of its user
    left = np.repeat(counts, counts) - place
    split = np.where(np.repeat(counts, counts) < 3, 0, np.where(left == 1, 2, np.where(left == 2, 1, 0)))
    found = np.empty(len(user), np.int8)
    found[order] = split
    return found


def without_duplicates(records: Records) -> Records:
    """Keeps each user's first interaction with an item."""
    pairs = records.user.astype(np.int64) * len(records.items) + records.item
    _, first = np.unique(pairs, return_index=True)
    return records.take(np.sort(first))


def core(records: Records, user_core: int, item_core: int) -> Records:
    """Returns the largest subset in which every user and item has at least `user_core` and `item_core` interactions."""
    while len(records):
        users, items = np.bincount(records.user), np.bincount(records.item)
        stays = (users[records.user] >= user_core) & (items[records.item] >= item_core)
        if stays.all():
            break
        records = records.take(stays)
    return records


def cut_times(timestamp: np.ndarray, ratios: tuple[float, ...]) -> tuple[int, int]:
    """Returns the first timestamp of validation and of test, counted from the end as in the release.

    timestamp: (n,), ascending. Raises UserError if there are too few interactions to cut.
    """
    n, total = len(timestamp), sum(ratios)
    test, valid = int(n * ratios[2] / total), int(n * ratios[1] / total)
    if not (test and valid):
        raise UserError(f"{n} interactions are too few to cut by {':'.join(f'{ratio:g}' for ratio in ratios)}")
    return int(timestamp[n - test - valid]), int(timestamp[n - test])


def numbered(records: Records, n_items: int | None = None) -> Records:
    """Numbers the users and items that occur from 0, the items in the shuffled order of the release, or, with n_items,
    by their raw ids. Raises UserError for a raw id that is no number below n_items."""
    users, items = occurring(records.user), occurring(records.item)
    user = np.zeros(len(records.users), np.int32)
    user[users] = np.arange(len(users))
    found = replace(records, user=user[records.user], users=records.users[users])
    if n_items is not None:
        number = np.array([item_number(raw, n_items) for raw in records.items[items]], np.int32)
        names = np.array([str(each) for each in range(n_items)], dtype=object)
        places = np.zeros(len(records.items), np.int32)
        places[items] = number
        return replace(found, item=places[records.item], items=names)
    order = list(range(len(items)))
    random.Random(SHUFFLE).shuffle(order)  # number -> place among the raw ids that occur
    number = np.zeros(len(records.items), np.int32)
    number[items[order]] = np.arange(len(items))
    return replace(found, item=number[records.item], items=records.items[items[order]])


def item_number(raw: str, n_items: int) -> int:
    """The number that a raw id is. Raises UserError for one that is none below n_items."""
    if not (raw.isdecimal() and str(int(raw)) == raw and int(raw) < n_items):
        raise UserError(
            f"item {raw!r} is no number of the index, which has items 0 to {n_items - 1}: give the index that was made "
            "for these items, or none"
        )
    return int(raw)


def occurring(ids: np.ndarray) -> np.ndarray:
    """Returns the distinct values of small non-negative integers (n,), ascending."""
    return np.flatnonzero(np.bincount(ids))


def moment(microseconds: int) -> str:
    """Formats a time, such as `1394409600 (2014-03-10 00:00:00 UTC)`."""
    seconds = microseconds / 1e6
    number = f"{microseconds // 10**6}" if microseconds % 10**6 == 0 else f"{seconds:.6f}"
    try:
        return f"{number} ({datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S} UTC)"
    except (OverflowError, OSError, ValueError):  # outside the range of datetime
        return number
