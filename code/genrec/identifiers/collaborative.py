"""Collaborative vectors: items that people chose close to one another, in their training sequences, lie close.

The positive pointwise mutual information of items, factorised: what item2vec learns, without training (Levy and
Goldberg, Neural word embedding as implicit matrix factorization, NIPS 2014). To make identifiers of them, too, is the
idea of LETTER (Wang et al., CIKM 2024), which pulls an RQ-VAE's codes towards a collaborative recommender's vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize, pad

from genrec.data.splits import Interactions
from genrec.identifiers.sources import VectorSource
from genrec.runtime.files import atomic_path

FILE = "collaborative.safetensors"
WINDOW = 10  # places between two items that count as together
ITERATIONS = 4  # of the randomised decomposition


@dataclass(frozen=True)
class WithCollaborative:
    """The vectors of a source, to length 1, and after them the collaborative vectors of the items.

    The latter are written to a folder, and read from there if they are there: a new item, which came after they were
    made, has zeros.
    """

    source: VectorSource
    folder: Path
    train: Interactions
    size: int  # of a collaborative vector
    about: dict

    @property
    def names(self) -> list[str]:
        return self.source.names

    @property
    def without(self) -> Sequence[int]:
        return self.source.without

    def all(self, folder: Path) -> Tensor:
        return self._beside(self.source.all(folder), range(len(self.names)))

    def some(self, items: Sequence[int]) -> Tensor:
        return self._beside(self.source.some(items), items)

    def _beside(self, vectors: Tensor, items: Sequence[int]) -> Tensor:
        path = self.folder / FILE
        if not path.is_file():
            with atomic_path(path) as partial:
                save_file({"vectors": collaborative_vectors(self.train, len(self.names), self.size)}, partial)
        known = load_file(path)["vectors"]
        every = pad(known, (0, 0, 0, len(self.names) - len(known)))
        return torch.cat([normalize(vectors.float(), eps=1e-6), every[list(items)]], -1)


def collaborative_vectors(train: Interactions, n_items: int, size: int) -> Tensor:
    """The vectors (n_items, size), float32, each of length 1, or 0 where an item has no other beside it.

    train: user -> items, oldest first. size: at most n_items. The same on the same machine and number of threads.
    """
    information = positive_information(together(train, n_items))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, values, _ = torch.svd_lowrank(information, q=size, niter=ITERATIONS)
    return normalize(left * values.sqrt(), eps=1e-6)


def together(train: Interactions, n_items: int) -> Tensor:
    """How often two items stand within the window (n_items, n_items), sparse, symmetric; each time 1 / sqrt(places)."""
    pairs, weights = [torch.empty(2, 0, dtype=torch.long)], [torch.empty(0)]
    for items in train.values():
        row = torch.tensor(items)
        for places in range(1, min(WINDOW, len(row) - 1) + 1):
            pairs += [torch.stack([row[:-places], row[places:]]), torch.stack([row[places:], row[:-places]])]
            weights += [torch.full((2 * (len(row) - places),), places**-0.5)]
    return torch.sparse_coo_tensor(
        torch.cat(pairs, 1), torch.cat(weights), (n_items, n_items), check_invariants=True
    ).coalesce()


def positive_information(counts: Tensor) -> Tensor:
    """max(0, log p(i, j) / (p(i) p(j))) of how often i and j are together (n, n), sparse and symmetric."""
    (rows, columns), values = counts.indices(), counts.values()
    of_item = counts.sum(0).to_dense()
    information = (values * values.sum() / (of_item[rows] * of_item[columns])).log().clamp(min=0)
    return torch.sparse_coo_tensor(counts.indices(), information, counts.shape, check_invariants=True).coalesce()
