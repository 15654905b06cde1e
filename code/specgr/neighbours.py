"""A drafter without training, as an example of a third one: items like those of the history."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from specgr.tokens import NOTHING
from specgr.verify import Encoded


class NeighbourDrafter:
    """The cosine of an item's vector and the mean of the history's, where an item weighs `decay` times the one after
    it. Any vectors that new items have too will do: text embeddings, or sums of code embeddings."""

    def __init__(self, vectors: Tensor, decay: float = 0.8):
        """vectors: (n_items, d). Raises ValueError if a decay is not in (0, 1]."""
        if not 0 < decay <= 1:
            raise ValueError(f"decay is the weight of an item beside the one after it, in (0, 1], not {decay}")
        self.vectors, self.decay = normalize(vectors.float(), dim=-1), decay

    def scores(self, encoded: Encoded) -> Tensor:
        """See `drafters.Drafter`."""
        real = encoded.items != NOTHING
        after = real.flip(-1).cumsum(-1).flip(-1) - 1  # items that follow in the history
        weight = torch.where(real, self.decay**after, 0.0)
        means = (weight[..., None] * self.vectors[encoded.items.clamp(min=0)]).sum(1)
        return normalize(means, dim=-1) @ self.vectors.T
