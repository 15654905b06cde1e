"""The verifier: how likely a generative recommender is to generate an item after a history."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from specgr.data.codes import Codes
from specgr.decoding.prefixes import TigerBeams
from specgr.networks.t5_tree import Cache, by_rows, draft_paths, pad_paths, read
from specgr.networks.tiger import Tiger


@dataclass(frozen=True)
class EncodedHistories:
    """Histories, and what the verifier's encoder made of them: all that drafter and decoder work from."""

    items: Tensor  # (B, T) long, oldest first, NOTHING where there is none
    hidden: Tensor  # (B, S, d_model)
    attention_mask: Tensor  # (B, S) long


class Decoder(Protocol):
    """Reads prefixes for the rows of one `EncodedHistories`, from the empty one on, each call one token deeper."""

    def read(self, beams: TigerBeams, owner: Tensor, rest: Tensor) -> tuple[Tensor, Tensor, TigerBeams]:
        """Read the last token of every beam and, in the same pass, drafts that go on from a beam.

        owner: (B, M) long, the beam that a draft begins with. rest: (B, M, l - d) long, its tokens after that.
        Returns log-probabilities, of what follows the beams (B, W, V) and of `rest` (B, M, l - d), and the beams that
        know where they were read.
        """

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these (b,)."""


class Verifier(Protocol):
    """A generative recommender."""

    def encode(self, histories: Tensor) -> EncodedHistories: ...

    def decoder(self, encoded: EncodedHistories) -> Decoder: ...


@dataclass(frozen=True, eq=False)
class TigerVerifier:
    """TIGER as a `Verifier`. Both parts must be on one device, and the model in evaluation mode."""

    tiger: Tiger
    codes: Codes

    def encode(self, histories: Tensor) -> EncodedHistories:
        ids, mask = self.codes.history(histories)
        return EncodedHistories(histories, self.tiger.encode(ids, mask), mask)

    def decoder(self, encoded: EncodedHistories) -> "TigerDecoder":
        return TigerDecoder(self.tiger, encoded)


class TigerDecoder:
    """TIGER's decoder over beams and drafts. What was read of a beam stays in the cache, also when the beam is dropped:
    nothing there is moved, a beam knows its path. Drafts are cut off again."""

    def __init__(self, tiger: Tiger, encoded: EncodedHistories):
        self.tiger, self.hidden, self.mask = tiger, encoded.hidden, encoded.attention_mask
        self.cache = Cache()

    def read(self, beams: TigerBeams, owner: Tensor, rest: Tensor) -> tuple[Tensor, Tensor, TigerBeams]:
        """See `Decoder`."""
        (batch, width), (m, length) = beams.states.shape, rest.shape[1:]
        inputs = torch.cat([beams.last, rest[..., :-1].flatten(1)], 1)
        places = torch.arange(beams.depth, beams.depth + length, device=rest.device)
        depths = torch.cat([places[:1].expand(width), places[1:].repeat(m)])
        row = torch.arange(batch, device=rest.device)[:, None]
        slots = self.cache.slots + torch.arange(width, device=rest.device)
        path = torch.cat([beams.path, slots[None, :, None].expand(batch, -1, -1)], -1)  # (B, W, d + 1)
        chain = draft_paths(path[row, owner], self.cache.slots + width, length - 1)
        paths = torch.cat([pad_paths(path, chain.shape[-1]), chain], 1)
        kept = self.cache.slots + width
        states = read(self.tiger.t5.decoder, inputs, depths, paths, self.hidden, self.mask, self.cache)
        self.cache.crop(kept)
        following = by_rows(self._log_probs, width * self.tiger.settings.vocabulary_size, states[:, :width])
        first = following[row, owner, rest[..., 0]]
        later = by_rows(
            lambda after, tokens: self._log_probs(after).gather(-1, tokens[..., None])[..., 0],
            m * (length - 1) * self.tiger.settings.vocabulary_size, states[:, width:], rest[..., 1:].flatten(1),
        ).unflatten(1, (m, length - 1))  # fmt: skip
        return following, torch.cat([first[..., None], later], -1), replace(beams, path=path)

    def _log_probs(self, states: Tensor) -> Tensor:
        return self.tiger.head(states).log_softmax(-1)

    def keep(self, rows: Tensor) -> None:
        """See `Decoder`."""
        self.hidden, self.mask = self.hidden[rows], self.mask[rows]
        self.cache.keep(rows)


def verification_score(log_probs: Tensor, seen: Tensor) -> Tensor:
    """V, the score that the threshold is for: the mean log-probability of an item's tokens.

    The last token of an item that is not in the training data is left out: nobody has learnt it.
    log_probs: (..., l), of each token given those before and the history. seen: (...) bool. Returns (...).
    """
    semantic = log_probs[..., :-1].sum(-1)
    levels = log_probs.shape[-1]
    return torch.where(seen, (semantic + log_probs[..., -1]) / levels, semantic / (levels - 1))
