"""The samples of SpecGR: a history and the next item each, and which items occur in training.

From a folder in either of two layouts:
- AtSpeed (`genrec.data.splits`): users' sequences cut at two points of time. Every item of a split is a target, after
  the true history before it; so a test user with several items gives several samples, as in the published evaluation.
- Parquet (written by `specgr.process_data`): train.parquet, valid.parquet and test.parquet with the columns user,
  history (a list of items, oldest first) and item, a row for every interaction, a user's first one included. It also
  holds users who come after training, which the other cannot.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genrec.data.catalogue import Catalogue, find_index
from genrec.data.dataset import Dataset, Sample, check_index, load_dataset
from genrec.data.splits import SPLITS
from genrec.runtime.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from specgr.data.codes import Codes

logger = logging.getLogger(__name__)

SUBSETS = ("all", "in-sample", "unseen")


@dataclass(frozen=True)
class Examples:
    """Histories and the item that follows each."""

    histories: Tensor  # (N, T) long, oldest first, NOTHING after the end
    targets: Tensor  # (N,) long

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, rows: Tensor | slice) -> Examples:
        return Examples(self.histories[rows], self.targets[rows])

    def to(self, device: torch.device) -> Examples:
        return Examples(self.histories.to(device), self.targets.to(device))

    def sample(self, most: int | None, seed: int) -> Examples:
        """A random choice of at most `most`, in their order; all for None. The same for the same seed."""
        if most is None or most >= len(self):
            return self
        import torch

        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self[order[:most].sort().values]

    def samples(self) -> list[Sample]:
        """As `genrec` has them, numbered; each has one label."""
        from specgr.data.codes import NOTHING

        rows = zip(self.histories.tolist(), self.targets.tolist(), strict=True)
        return [Sample(i, tuple(h for h in history if h != NOTHING), (item,)) for i, (history, item) in enumerate(rows)]

    @classmethod
    def of(cls, pairs: Iterable[tuple[list[int], int]], max_history: int) -> Examples:
        """pairs: a history, of which the last `max_history` items count, and what comes after it."""
        import torch

        from specgr.data.codes import NOTHING

        histories, targets = [], []
        for history, item in pairs:
            last = history[-max_history:]
            histories.append(np.pad(np.asarray(last, np.int64), (0, max_history - len(last)), constant_values=NOTHING))
            targets.append(item)
        stacked = torch.from_numpy(np.stack(histories)) if histories else torch.zeros(0, max_history, dtype=torch.long)
        return cls(stacked, torch.tensor(targets, dtype=torch.long))


@dataclass(frozen=True)
class Data:
    name: str
    codes: Codes
    seen: Tensor  # (n_items,) bool, whether an item is in the training split
    train: Examples
    valid: Examples
    test: Examples

    def subset(self, examples: Examples, name: str) -> Examples:
        """name: one of SUBSETS, by the target."""
        if name == "all":
            return examples
        return examples[self.seen[examples.targets] == (name == "in-sample")]

    @property
    def fingerprint(self) -> str:
        """Identifies samples and identifiers."""
        return self._digest(self.codes.codes, self.train, self.valid, self.test)

    @property
    def trained_fingerprint(self) -> str:
        """Identifies what a training sees: its samples, those of validation, and the identifiers of the items in both.
        Items and test requests that come later change nothing."""
        import torch

        from specgr.data.codes import NOTHING

        items = torch.cat([part.flatten() for of in (self.train, self.valid) for part in (of.histories, of.targets)])
        items = items[items != NOTHING].unique()
        return self._digest(torch.cat([items[:, None], self.codes.codes[items]], 1), self.train, self.valid)

    def _digest(self, codes: Tensor, *splits: Examples) -> str:
        ends = ", BOS and EOS" if self.codes.bos_eos else ""
        digest = hashlib.sha256(f"{self.codes.sizes}{ends}".encode())
        for part in (codes, *(part for split in splits for part in (split.histories, split.targets))):
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def load_data(
    data_path: str,
    dataset: str,
    index: str | None = None,
    *,
    max_history: int = 20,
    digits: int = 256,
    bos_eos: bool = False,
) -> Data:
    """Read data_path/dataset, in either layout, and its identifiers (`<dataset>.*.json`, or the file `index`).

    Raises UserError that names file and item if something is missing, or more than `digits` items share all levels of
    their identifiers but the last.
    """
    folder = Path(data_path) / dataset
    if (folder / "train.parquet").is_file():
        path = Path(index) if index else find_index(folder, dataset)
        catalogue = Catalogue.load(path)
        pairs = {split: _read_parquet(folder / f"{split}.parquet") for split in SPLITS}
        items = {item for split in SPLITS for history, item in pairs[split] for item in (*history, item)}
        check_index(path, catalogue, items, folder)
    else:
        loaded = load_dataset(data_path, dataset, index)
        catalogue, pairs = loaded.catalogue, {split: list(_pairs(loaded, split)) for split in SPLITS}

    import torch

    from specgr.data.codes import Codes

    codes = Codes.from_catalogue(catalogue, digits, bos_eos)
    seen = torch.zeros(len(codes.codes), dtype=torch.bool)
    seen[[item for _, item in pairs["train"]]] = True
    with_history = {split: [(history, item) for history, item in pairs[split] if len(history)] for split in SPLITS}
    data = Data(dataset, codes, seen, *(Examples.of(with_history[split], max_history) for split in SPLITS))
    unseen = [f"{len(data.subset(part, 'unseen'))} of {len(part)}" for part in (data.valid, data.test)]
    logger.info(
        f"{dataset}: {int(seen.sum())} of {len(seen)} items seen in {len(data.train)} samples; unseen targets: "
        f"{unseen[0]} in validation, {unseen[1]} in test"
    )
    return data


def _pairs(data: Dataset, split: str) -> Iterable[tuple[list[int], int]]:
    """Every item of the split after all that came before it."""
    splits = data.splits
    before = {"train": [], "valid": [splits.train], "test": [splits.train, splits.valid]}[split]
    for user in sorted(splits[split]):
        history = [item for part in before for item in part.get(user, [])]
        for item in splits[split][user]:
            yield history[:], item
            history.append(item)


def _read_parquet(path: Path) -> list[tuple[list[int], int]]:
    import pandas as pd

    try:
        table = pd.read_parquet(path, columns=["history", "item"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no Parquet file with the columns history and item ({error}); write it again: bash "
                        "script/specgr_process_data.sh") from error  # fmt: skip
    return list(zip(table["history"].map(list), table["item"].tolist(), strict=True))
