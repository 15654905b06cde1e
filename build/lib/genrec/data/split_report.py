"""Counts of warm and cold items in each split, as in the release, for any data set."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genrec.data.splits import SPLITS, Interactions, Splits


@dataclass(frozen=True)
class SplitCounts:
    """Counts of a split. An item is cold if it is not in the training split, else warm; a user may have both."""

    interactions: int
    users: int  # with an interaction in the split
    items: int  # distinct
    cold_items: int
    cold_interactions: int
    users_with_cold: int
    users_with_warm: int
    history_min: int  # items of a user before the split; in training, the training items themselves
    history_median: float
    history_mean: float
    history_max: int


_ROWS = {  # field -> its name in the table
    "interactions": "interactions",
    "users": "users",
    "items": "items",
    "cold_items": "cold items (not in training)",
    "cold_interactions": "interactions with cold items",
    "users_with_cold": "users with cold items",
    "users_with_warm": "users with warm items",
    "history_min": "history length: least",
    "history_median": "history length: median",
    "history_mean": "history length: mean",
    "history_max": "history length: most",
}


def count_splits(splits: Splits) -> dict[str, SplitCounts]:
    """Returns split -> its counts."""
    warm = {item for items in splits.train.values() for item in items}
    before = {"train": [splits.train], "valid": [splits.train], "test": [splits.train, splits.valid]}
    return {name: _count(splits[name], warm, before[name]) for name in SPLITS}


def _count(split: Interactions, warm: set[int], before: Sequence[Interactions]) -> SplitCounts:
    items, cold, with_cold, with_warm, histories = set(), 0, 0, 0, []
    for user, mine in split.items():
        if not mine:
            continue
        items.update(mine)
        here = sum(item not in warm for item in mine)
        cold += here
        with_cold += here > 0
        with_warm += here < len(mine)
        histories.append(sum(len(history.get(user, ())) for history in before))
    return SplitCounts(
        sum(map(len, split.values())), len(histories), len(items), len(items - warm), cold, with_cold, with_warm,
        min(histories), float(np.median(histories)), round(float(np.mean(histories)), 2), max(histories),
    )  # fmt: skip


def split_table(counts: dict[str, SplitCounts]) -> str:
    """Formats the counts as a Markdown table with one column per split."""
    lines = ["| | " + " | ".join(counts) + " |", "|---|" + "---:|" * len(counts)]
    for field, name in _ROWS.items():
        cells = [f"{getattr(of, field):,}" for of in counts.values()]
        if field == "cold_interactions":
            cells = [
                f"{n} ({of.cold_interactions / of.interactions:.1%})"
                for n, of in zip(cells, counts.values(), strict=True)
            ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
