"""The verifier: a generative recommender that scores items by the likelihood of their identifiers."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from specgr.data.codes import Codes
from specgr.networks.t5_reader import T5Reader
from specgr.networks.tiger import Tiger


@dataclass(frozen=True)
class EncodedHistories:
    """Histories, and the verifier's encoder output for them."""

    items: Tensor  # (B, T) long, oldest first, NOTHING where there is none
    hidden: Tensor  # (B, S, d_model)
    attention_mask: Tensor  # (B, S) long


class Verifier(Protocol):
    """A generative recommender."""

    def encode(self, histories: Tensor) -> EncodedHistories: ...

    def reader(self, encoded: EncodedHistories) -> T5Reader: ...


@dataclass(frozen=True, eq=False)
class TigerVerifier:
    """TIGER as a `Verifier`. Both parts must be on one device, and the model in evaluation mode."""

    tiger: Tiger
    codes: Codes

    def encode(self, histories: Tensor) -> EncodedHistories:
        ids, mask = self.codes.history(histories)
        return EncodedHistories(histories, self.tiger.encode(ids, mask), mask)

    def reader(self, encoded: EncodedHistories) -> T5Reader:
        return self.tiger.reader(encoded.hidden, encoded.attention_mask)


def verification_score(semantic: Tensor, last: Tensor, seen: Tensor, levels: int) -> Tensor:
    """V, the score that the threshold is for: the mean log-probability of an item's `levels` tokens.

    The last token of an item that is not in the training data is left out: nobody has learnt it.
    semantic, last: (...), the log-probability of all tokens but the last, and of the last. seen: (...) bool.
    """
    return torch.where(seen, (semantic + last) / levels, semantic / (levels - 1))
