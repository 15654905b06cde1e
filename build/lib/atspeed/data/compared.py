"""The tokens that an alignment loss compares before each token of an identifier."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from atspeed.data.teacher_data import LEVEL, TRIE, VOCABULARY
from atspeed.tree_logits import TreeLogits
from beamsd import Trie


@dataclass(frozen=True)
class ComparedTokens:
    """The C tokens that are compared before each token of a beam: see `ALIGNMENT_OVER`."""

    over: str
    trie: Trie

    def width(self, vocabulary: int) -> int:
        """C. vocabulary: V."""
        return {TRIE: self.trie.fanout, LEVEL: self.codes.shape[-1], VOCABULARY: vocabulary}[self.over]

    def real(self, beams: Tensor) -> Tensor:
        """Whether each of the tokens before each token of `beams` (B, K, L) exists: (B, K, L, C), or C = 1 for all."""
        if self.over == VOCABULARY:
            return torch.ones_like(beams, dtype=torch.bool)[..., None]
        return self._tokens(beams)[1]

    def log_probs(self, tree: TreeLogits, beams: Tensor) -> Tensor:
        """Log-probabilities (B, K, L, C) float32, normalised over the vocabulary; anything where no token is."""
        if self.over == VOCABULARY:
            return tree.for_beams().float().log_softmax(-1)
        return tree.log_probs(self._tokens(beams)[0])

    def among(self, held: ComparedTokens, log_probs: Tensor, beams: Tensor) -> Tensor:
        """Those of `log_probs` (B, K, L, C'), which are of the tokens of `held`, that are of these tokens."""
        if self.over == held.over:
            return log_probs
        tokens, _ = self._tokens(beams)
        if held.over == LEVEL:
            codes = held.codes.expand(*beams.shape[:-1], -1, -1).contiguous()
            tokens = torch.searchsorted(codes, tokens).clamp(max=codes.shape[-1] - 1)
        return log_probs.gather(-1, tokens)

    @cached_property
    def codes(self) -> Tensor:
        """(L, C) long: the tokens of each level, ascending; one beyond all tokens where a level has fewer."""
        levels, first, last = [], 0, 1
        for _ in range(self.trie.length):  # states are numbered level by level
            first, last = self.trie.first_child[[first, last]].tolist()
            levels.append(self.trie.tokens[first:last].unique())
        beyond = self.trie.vocabulary_size
        return torch.nn.utils.rnn.pad_sequence(levels, batch_first=True, padding_value=beyond)

    def _tokens(self, beams: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (B, K, L, C) long, ascending, before each token of `beams` (B, K, L), and whether each is real."""
        if self.over == TRIE:
            children = self.trie.children(self.trie.walk(beams)[..., :-1])
            return self.trie.tokens[children], children != self.trie.dead
        real = self.codes != self.trie.vocabulary_size
        shape = (*beams.shape, self.codes.shape[-1])
        return self.codes.where(real, 0).expand(shape), real.expand(shape)
