"""A data set: splits, the catalogue that fits them, and the samples for training and evaluation."""

import logging
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from genrec.data.catalogue import Catalogue, find_index
from genrec.data.splits import Splits, check_split, load_splits
from genrec.runtime.errors import UserError

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One prediction task: a history and the items that follow it."""

    user: int
    history: tuple[int, ...]  # items, oldest first
    labels: tuple[int, ...]  # distinct items, in order; one in training and validation, all of the user's in test


@dataclass(frozen=True)
class Dataset:
    name: str
    splits: Splits
    catalogue: Catalogue

    def samples(
        self, split: str, *, max_history: int | None = 20, subseq: bool = False, in_windows: bool = False
    ) -> list[Sample]:
        """Returns the samples of a split; histories hold at most the last `max_history` items, None: all.

        Training: predict the last training item from those before it or, with `subseq`, every item but the first. With
        `in_windows` too, a sample stands for all items that it holds but the first, as one does whose history is learnt
        as well (`history_loss`): from the end of a sequence, windows that share one item with the next.
        Validation: predict the first validation item from the training items. Test: predict all test items from the
        training and validation items. Users without a sample are left out. Where the samples are given, they are these,
        with one item to predict each. Raises UserError for an unknown split.
        """
        check_split(split)
        max_history = max_history or sys.maxsize
        if self.splits.samples is not None:
            rows = self.splits.samples[split]
            return [Sample(user, tuple(history[-max_history:]), (item,)) for user, history, item in rows]
        train, samples = self.splits.train, []
        for user in sorted(self.splits[split]):
            items = self.splits[split][user]
            if split == "train":
                step = (max_history if in_windows else 1) if subseq else max(len(items), 1)
                ends = reversed(range(len(items) - 1, 0, -step))
                samples += [Sample(user, tuple(items[:end][-max_history:]), (items[end],)) for end in ends]
            elif split == "valid" and items:
                samples.append(Sample(user, tuple(train[user][-max_history:]), (items[0],)))
            elif split == "test" and items:
                history = train.get(user, []) + self.splits.valid.get(user, [])
                samples.append(Sample(user, tuple(history[-max_history:]), tuple(dict.fromkeys(items))))
        return samples


def take(samples: Sequence[T], most: int | None, seed: int) -> Sequence[T]:
    """Returns at most `most` random samples (None: all) in their original order, the same for the same seed."""
    if most is None or most >= len(samples):
        return samples
    return [samples[i] for i in sorted(random.Random(seed).sample(range(len(samples)), most))]


def check_index(path: Path, catalogue: Catalogue, items: set[int], folder: Path) -> None:
    """Raises UserError if `catalogue` lacks one of the `items` in `folder`, or most of its items are not among them."""
    absent = sorted(items - catalogue.identifiers.keys())
    if absent:
        raise UserError(
            f"{path}: item {absent[0]} has no identifier ({len(absent)} of the {len(items)} items of {folder} have "
            "none); is it the index of another data set?"
        )
    if len(items) < len(catalogue.identifiers) / 2:
        raise UserError(
            f"{path}: names {len(catalogue.identifiers)} items, of which only {len(items)} occur in {folder}; is it "
            "the index of another data set?"
        )


def load_dataset(data_path: str, dataset: str, index: str | None = None) -> Dataset:
    """Loads `data_path`/`dataset`: the splits and the identifier index (`<dataset>.*.json`, or `index`).

    Raises UserError that names file, key and value if the folder does not hold a data set in the released layout, an
    item has no identifier, or most items of the index never occur, as with the index of another data set.
    """
    folder = Path(data_path) / dataset
    splits = load_splits(folder)
    path = Path(index) if index else find_index(folder, dataset)
    catalogue = Catalogue.load(path)
    items = splits.items()
    check_index(path, catalogue, items, folder)
    logger.info(
        f"{dataset}: {len(splits.train)} users, {len(items)} items, "
        + " / ".join(f"{sum(map(len, splits[split].values()))}" for split in ("train", "valid", "test"))
        + f" interactions, {len(catalogue.tokens)} identifier tokens"
    )
    return Dataset(dataset, splits, catalogue)
