"""Drafters score all items, new ones included. SpecGR++ drafts with the verifier's own encoder."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from specgr.lists import Lists
from specgr.tiger import Tiger
from specgr.tokens import NOTHING, Codes
from specgr.verify import Encoded, Verifier


class Drafter(Protocol):
    """Ranks the catalogue for a history. This one method is all that a new drafter needs; see `neighbours`."""

    def scores(self, encoded: Encoded) -> Tensor:
        """The scores (B, n_items) float, best highest; -inf for an item that must not be recommended.

        encoded: histories as item numbers, and what the verifier's encoder made of them. Left as they are; the scores
        are the caller's to change.
        """


@dataclass(frozen=True)
class EncoderDrafter:
    """The drafter of SpecGR++: the similarity of the history's embedding and the items'."""

    tiger: Tiger
    items: Tensor  # (n_items, p), see `item_embeddings`

    def scores(self, encoded: Encoded) -> Tensor:
        """See `Drafter`."""
        return self.tiger.embed(encoded.hidden, encoded.attention_mask) @ self.items.T


@torch.inference_mode()
def item_embeddings(tiger: Tiger, codes: Codes, batch_size: int = 1024) -> Tensor:
    """What the encoder makes of every item's own identifier (n_items, p): of new items as well as of old ones."""
    chunks = []
    for tokens in codes.tokens.split(batch_size):
        mask = torch.ones_like(tokens)
        chunks.append(tiger.embed(tiger.encode(tokens, mask), mask))
    return torch.cat(chunks)


@dataclass(frozen=True)
class Drafted:
    """A drafter alone as a recommender, to compare with."""

    verifier: Verifier  # for its encoder
    drafter: Drafter

    @torch.inference_mode()
    def recommend(self, histories: Tensor, k: int) -> Lists:
        """See `lists.Recommender`."""
        scores = self.drafter.scores(self.verifier.encode(histories))
        best = scores.topk(min(k, scores.shape[1]))
        return Lists(best.indices.masked_fill(best.values.isneginf(), NOTHING), best.values)
