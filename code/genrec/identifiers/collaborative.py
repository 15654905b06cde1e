"""Collaborative vectors: items that people chose close to one another, in their training sequences, lie close.

The positive pointwise mutual information of items, factorised: what item2vec learns, without training (Levy and
Goldberg, Neural word embedding as implicit matrix factorization, NIPS 2014). To make identifiers of them, too, is the
idea of LETTER (Wang et al., CIKM 2024), which pulls an RQ-VAE's codes towards a collaborative recommender's vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize, pad

from genrec.data.splits import Interactions
from genrec.identifiers.sources import VectorSource
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path

FILE, VECTORS = "collaborative.safetensors", "vectors"
WINDOW = 10  # places between two items that count as together
ITERATIONS = 4  # of the randomised decomposition
RANK = 1e-5  # of the largest singular value: what a smaller one has is rounding


@dataclass(frozen=True)
class WithCollaborative:
    """The vectors of a source, to length 1, and after them the collaborative vectors of the items: zeros for those that
    came after these were made."""

    source: VectorSource
    load: Callable[[], Tensor]  # the collaborative vectors (n, size) of the first n items
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
        known = self.load()
        every = pad(known, (0, 0, 0, len(self.names) - len(known)))
        return torch.cat([normalize(vectors.float(), eps=1e-6), every[list(items)]], -1)


def written_vectors(path: Path, train: Interactions, n_items: int, size: int) -> Tensor:
    """`collaborative_vectors`, made and written unless the file is there."""
    if not path.is_file():
        with atomic_path(path) as partial:
            save_file({VECTORS: collaborative_vectors(train, n_items, size)}, partial)
    return read_vectors(path)


def read_vectors(path: Path) -> Tensor:
    """What `written_vectors` wrote. Raises UserError if it is gone or damaged."""
    try:
        return load_file(path)[VECTORS]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(
            f"{path}: no vectors of who chose what, of which the index was made ({error}); put the file back, or make "
            "the index again with --overwrite"
        ) from error


def collaborative_vectors(train: Interactions, n_items: int, size: int) -> Tensor:
    """The vectors (n_items, size), float32, each of length 1, or 0 where an item is beside no other more often than by
    chance.

    train: user -> items, oldest first. size: at most n_items. The same on the same machine and number of threads.
    """
    information = positive_information(together(train, n_items))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, values, _ = torch.svd_lowrank(information, q=size, niter=ITERATIONS)
    values = values.where(values > RANK * values[0], 0)  # beyond the rank there is noise alone
    some = (information.sum(1).to_dense() > 0)[:, None]
    return normalize(left * values.sqrt() * some, eps=1e-6)


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
