"""Drafters without training: items similar to those of the history."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from specgr.data.codes import NOTHING, Codes
from specgr.decoding.verifier import EncodedHistories

EARLIER = 1e-13  # what a lower item number is worth; the noise of double precision stays below
BLOCK = 2**16  # items that are scored at a time, so that nothing but codes or vectors grows with their number


class NeighbourDrafter:
    """The cosine of an item's vector and the mean of the history's unit vectors, where an item weighs `decay` times the
    one after it: 0 is the last item alone, 1 the plain mean. Any vectors that new items have too will do, such as text
    embeddings. Of items that are equally near the one with the lower number comes first, whatever else is in the
    batch."""

    def __init__(self, vectors: Tensor, decay: float = 0.8):
        """vectors: (n_items, d). Raises ValueError if a decay is not in [0, 1]."""
        self.vectors, self.decay = vectors, check_decay(decay)

    def scores(self, encoded: EncodedHistories) -> Tensor:
        """See `ItemDrafter`; float64."""
        weight = history_weights(encoded.items, self.decay)
        units = normalize(self.vectors[encoded.items.clamp(min=0)].double(), dim=-1)
        means = normalize((weight[..., None] * units).sum(1), dim=-1)
        parts = [means @ normalize(part.double(), dim=-1).T for part in self.vectors.split(BLOCK)]
        return in_order(torch.cat(parts, 1))


class CodeNeighbourDrafter:
    """A `NeighbourDrafter` of semantic codes: of vectors that are one-hot in each level, a level worth half of the one
    before it in a product, since residuals get smaller. The identification digit means nothing and is left out.

    The vectors are never made: a product of two is a sum over the levels in which the codes are the same.
    """

    def __init__(self, codes: Codes, decay: float = 0.8):
        """Raises ValueError if a decay is not in [0, 1]."""
        self.codes, self.sizes, self.decay = codes.codes[:, :-1], codes.sizes[:-1], check_decay(decay)

    def scores(self, encoded: EncodedHistories) -> Tensor:
        """See `ItemDrafter`; float64."""
        weight = history_weights(encoded.items, self.decay)  # (B, T)
        history = self.codes[encoded.items.clamp(min=0)]  # (B, T, l)
        worth = [0.5**level for level in range(len(self.sizes))]
        weights = [  # of every code of a level in the history, (B, size)
            weight.new_zeros(len(weight), size).scatter_add_(1, history[..., level], weight)
            for level, size in enumerate(self.sizes)
        ]
        squares = [scale * each.square().sum(1, keepdim=True) for scale, each in zip(worth, weights, strict=True)]
        norms = (torch.stack(squares).sum(0).sqrt() * sum(worth) ** 0.5).clamp(min=1e-12)
        tables = [scale * each / norms for scale, each in zip(worth, weights, strict=True)]
        scores = weight.new_zeros(len(weight), len(self.codes))
        for part, codes in zip(scores.split(BLOCK, 1), self.codes.split(BLOCK), strict=True):
            for table, code in zip(tables, codes.T, strict=True):
                part += table.index_select(1, code)
        return in_order(scores)


def check_decay(decay: float) -> float:
    """The decay. Raises ValueError if it is not in [0, 1]."""
    if not 0 <= decay <= 1:
        raise ValueError(f"decay is the weight of an item beside the one after it, in [0, 1], not {decay}")
    return decay


def history_weights(items: Tensor, decay: float) -> Tensor:
    """What each item of the histories (B, T) weighs, float64; 0 where there is none."""
    real = items != NOTHING
    after = real.flip(-1).cumsum(-1).flip(-1) - 1  # items that follow in the history
    return torch.where(real, torch.full_like(after, decay, dtype=torch.float64) ** after, 0.0)


def in_order(scores: Tensor) -> Tensor:
    """The scores (B, n_items), changed so that of equal ones that of the lower number is the larger."""
    return scores.sub_(torch.arange(scores.shape[1], device=scores.device), alpha=EARLIER)
