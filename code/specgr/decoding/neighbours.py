"""A drafter without training: items similar to those of the history."""

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from specgr.data.codes import NOTHING, Codes
from specgr.decoding.verifier import EncodedHistories

EARLIER = 1e-13  # what a lower number is worth


def code_vectors(codes: Codes) -> Tensor:
    """Vectors (n_items, d) that are alike where semantic codes are: one-hot, a level worth half of the one before it
    in a product, since residuals get smaller. The identification digit means nothing and is left out."""
    levels = zip(codes.codes.T, codes.sizes, strict=True)
    return torch.cat([one_hot(code, size) * 2 ** (-i / 2) for i, (code, size) in enumerate(levels)][:-1], 1)


class NeighbourDrafter:
    """The cosine of an item's vector and the mean of the history's, where an item weighs `decay` times the one after
    it. Any vectors that new items have too will do: text embeddings, or `code_vectors`. Many items are equally near by
    their codes: of those the one with the lower number comes first, whatever else is in the batch."""

    def __init__(self, vectors: Tensor, decay: float = 0.8):
        """vectors: (n_items, d). Raises ValueError if a decay is not in (0, 1]."""
        if not 0 < decay <= 1:
            raise ValueError(f"decay is the weight of an item beside the one after it, in (0, 1], not {decay}")
        # Double precision, whose noise stays below EARLIER.
        self.vectors, self.decay = normalize(vectors.double(), dim=-1), decay

    def scores(self, encoded: EncodedHistories) -> Tensor:
        """See `ItemDrafter`."""
        real = encoded.items != NOTHING
        after = real.flip(-1).cumsum(-1).flip(-1) - 1  # items that follow in the history
        weight = torch.where(real, self.decay**after, 0.0)
        means = (weight[..., None] * self.vectors[encoded.items.clamp(min=0)]).sum(1)
        scores = normalize(means, dim=-1) @ self.vectors.T
        return scores - EARLIER * torch.arange(scores.shape[1], device=scores.device)
