"""The prefixes of the catalogue's identifiers, and the items below each."""

from dataclasses import dataclass

import torch
from torch import Tensor

from beamsd import Trie
from specgr.data.codes import NOTHING, Codes


@dataclass(frozen=True)
class Prefixes:
    """Which items lie below which prefix. A prefix is a state of the trie, see `beamsd.Trie`."""

    tokens: Tensor  # (n_items, l) long, `Codes.tokens`
    trie: Trie
    states: Tensor  # (l + 1, n_items) long, the prefix of an item after so many tokens
    items: Tensor  # (n_states,) long, the item whose identifier ends there; NOTHING inside the trie
    runs: tuple[tuple[int, int], ...]  # (l + 1,) the first prefix after so many tokens, and how many there are

    @classmethod
    def of(cls, codes: Codes) -> "Prefixes":
        trie = Trie(codes.tokens)
        states = trie.walk(codes.tokens).T.contiguous()
        items = torch.full_like(trie.tokens, NOTHING)
        items[states[-1]] = torch.arange(len(codes.tokens), device=items.device)
        runs = tuple((int(level.min()), int(level.max() - level.min()) + 1) for level in states)
        return cls(codes.tokens, trie, states, items, runs)

    @property
    def levels(self) -> int:
        return self.tokens.shape[1]

    def below(self, prefixes: Tensor, depth: int) -> Tensor:
        """Which items lie below one of the row's prefixes. prefixes: (B, W) states after `depth` tokens, or dead.

        Returns (B, n_items) bool.
        """
        first, count = self.runs[depth]
        allowed = torch.zeros(len(prefixes), count + 1, dtype=torch.bool, device=prefixes.device)
        allowed.scatter_(1, (prefixes - first).clamp(max=count), True)  # the last for the dead
        return allowed.index_select(1, (self.states[depth] - first).int())  # int, which is the faster one
