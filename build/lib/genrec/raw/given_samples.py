"""Samples that are given: histories and the items that followed them, in files of train, valid and test."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.data.splits import SPLITS, SampleRow, save_samples
from genrec.raw.process import item_number, save_names
from genrec.raw.records import RawSample
from genrec.runtime.errors import UserError


@dataclass(frozen=True)
class GivenSamples:
    """Samples by split, with users and items as numbers."""

    rows: dict[str, list[SampleRow]]
    users: np.ndarray  # raw ids
    items: np.ndarray

    def save(self, folder: Path, titles: Mapping[int, str]) -> None:
        """Writes train.parquet, valid.parquet, test.parquet, users.parquet and items.parquet."""
        save_samples(self.rows, folder)
        save_names(folder, self.users, self.items, titles)


def number_samples(
    raw: Sequence[Sequence[RawSample]], parts: Sequence[str | None], n_items: int | None
) -> GivenSamples:
    """raw: the samples of each file. parts: the split of each. n_items: raw item ids are numbers below this, and stay;
    None: items are numbered in the order of their raw ids. Raises UserError for a split without samples."""
    by_split: dict[str, list[tuple[str, list[str], str]]] = {split: [] for split in SPLITS}
    for rows, part in zip(raw, parts, strict=True):
        by_split[part or "train"] += [(user, items_of(history), item) for user, history, item in rows]
    for split, found in by_split.items():
        if not any(history for _, history, _ in found):
            raise UserError(f"the {split} split is empty: no sample there has a history")
    users = sorted({user for found in by_split.values() for user, _, _ in found})
    ids = sorted({each for found in by_split.values() for _, history, item in found for each in (item, *history)})
    numbers = {raw: number if n_items is None else item_number(raw, n_items) for number, raw in enumerate(ids)}
    names = ids if n_items is None else [str(number) for number in range(n_items)]
    of_user = {user: number for number, user in enumerate(users)}
    rows_of = {
        split: [(of_user[user], [numbers[each] for each in history], numbers[item]) for user, history, item in found]
        for split, found in by_split.items()
    }
    return GivenSamples(rows_of, np.array(users, dtype=object), np.array(names, dtype=object))


def items_of(text: str | None) -> list[str]:
    """The items of a history as text: a list of JSON or of Python ("[12, 7]", "['B01', 'B02']"), or words."""
    said = (text or "").strip()
    if said.startswith("["):
        for read in (json.loads, ast.literal_eval):
            try:
                return [str(item) for item in read(said)]
            except (ValueError, SyntaxError):
                continue
    return said.strip("[]").replace(",", " ").split()
