"""Drafters score all items, new ones included. SpecGR++ drafts with the verifier's own encoder."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from specgr.data.codes import NOTHING, Codes
from specgr.decoding.ranked_lists import RankedLists
from specgr.decoding.verifier import EncodedHistories, Verifier
from specgr.networks.tiger import Tiger
from specgr.networks.unisrec import UniSRec


class ItemDrafter(Protocol):
    """Ranks the catalogue for a history. This one method is all that a new drafter needs; see `neighbours`."""

    def scores(self, encoded: EncodedHistories) -> Tensor:
        """The scores (B, n_items) float, best highest; -inf for an item that must not be recommended.

        encoded: histories as item numbers, and what the verifier's encoder made of them. Left as they are; the scores
        are the caller's to change.
        """


@dataclass(frozen=True)
class EncoderDrafter:
    """The drafter of SpecGR++: the similarity of the history's embedding and the items'."""

    tiger: Tiger
    items: Tensor  # (n_items, p), see `item_embeddings`

    def scores(self, encoded: EncodedHistories) -> Tensor:
        """See `ItemDrafter`."""
        return self.tiger.embed(encoded.hidden, encoded.attention_mask) @ self.items.T


@torch.inference_mode()
def item_embeddings(tiger: Tiger, codes: Codes, batch_size: int = 1024) -> Tensor:
    """The encoder's embedding of every item's own identifier (n_items, p), new items included."""
    chunks = []
    for items in torch.arange(len(codes.codes), device=codes.codes.device)[:, None].split(batch_size):
        tokens, mask = codes.history(items)
        chunks.append(tiger.embed(tiger.encode(tokens, mask), mask))
    return torch.cat(chunks)


@dataclass(frozen=True)
class Drafted:
    """A drafter alone as a recommender, to compare with."""

    verifier: Verifier  # for its encoder
    drafter: ItemDrafter

    @torch.inference_mode()
    def recommend(self, histories: Tensor, k: int) -> RankedLists:
        """See `ItemRanker`."""
        scores = self.drafter.scores(self.verifier.encode(histories))
        best = scores.topk(min(k, scores.shape[1]))
        return RankedLists(best.indices.masked_fill(best.values.isneginf(), NOTHING), best.values)


@dataclass(frozen=True)
class UniSRecDrafter:
    """UniSRec as an `ItemDrafter`. All parts must be on one device, and the model in evaluation mode."""

    model: UniSRec
    texts: Tensor  # (n_items, d)
    items: Tensor  # (n_items, hidden), see `UniSRec.items`

    @classmethod
    @torch.inference_mode()
    def of(cls, model: UniSRec, texts: Tensor, batch_size: int = 4096) -> "UniSRecDrafter":
        return cls(model, texts, torch.cat([model.items(part) for part in texts.split(batch_size)]))

    def scores(self, encoded: EncodedHistories) -> Tensor:
        """See `ItemDrafter`."""
        return self.model.histories(encoded.items, self.texts) @ self.items.T


class Histories:
    """The `Verifier` of a drafter that needs no encoder."""

    def encode(self, histories: Tensor) -> EncodedHistories:
        """See `Verifier`."""
        nothing = histories.new_zeros(len(histories), 0)
        return EncodedHistories(histories, nothing[..., None].float(), nothing)
