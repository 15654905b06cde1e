"""The legal sequences, as a trie in CSR arrays that live on the device.

States are numbered breadth-first with the children of a state in a row and sorted by token, so a trie is two arrays:
the children of state s are the states `first_child[s]` up to `first_child[s + 1]`, each reached by its `tokens` entry.
Memory grows with the number of prefixes, not with states x vocabulary, and no mask as wide as the vocabulary is built.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trie:
    """A trie over token sequences of one length. State 0 is the root; `dead` is the state of what is not legal."""

    tokens: Tensor  # (n_states + 1,) long, the token that leads to a state; unused (0) for the root and `dead`
    first_child: Tensor  # (n_states + 2,) long
    length: int  # L, tokens in a sequence
    fanout: int  # the largest number of children

    @classmethod
    def from_items(cls, items: Tensor) -> "Trie":
        """Build from token ids (n_items, L), duplicates allowed.

        Raises ValueError if `items` is empty, not two-dimensional, or holds a negative token.
        """
        if items.dim() != 2 or items.numel() == 0:
            raise ValueError(f"a trie needs token ids of shape (n_items, length), not {tuple(items.shape)}")
        items = items.long()
        if items.min() < 0:
            raise ValueError(f"a trie needs token ids >= 0, not {items.min().item()}")
        # One pass a level: the key (state of the prefix, token) sorts a level breadth-first and by token.
        base = int(items.max()) + 1
        states = torch.zeros_like(items[:, 0])
        tokens, parents, n_states = [states[:1]], [], 1
        for column in items.T:
            keys, inverse = (states * base + column).unique(return_inverse=True)
            tokens.append(keys % base)
            parents.append(keys // base)
            states = n_states + inverse
            n_states += len(keys)
        children = torch.cat(parents).bincount(minlength=n_states + 1)  # and none for `dead`
        first_child = torch.cat([torch.ones_like(children[:1]), 1 + children.cumsum(0)])
        return cls(torch.cat([*tokens, tokens[0]]), first_child, items.shape[1], int(children.max()))

    @property
    def dead(self) -> int:
        """The state of an illegal prefix: it has no children."""
        return len(self.tokens) - 1

    @property
    def vocabulary_size(self) -> int:
        """The smallest vocabulary that holds every token of the trie. Reads the device."""
        return int(self.tokens.max()) + 1

    def to(self, device: torch.device | str) -> "Trie":
        return Trie(self.tokens.to(device), self.first_child.to(device), self.length, self.fanout)

    def children(self, states: Tensor, slots: int = 0) -> Tensor:
        """The children (..., C) of `states` (...), in order of their tokens, padded with `dead`.

        C is the trie's fan-out, or `slots` if that is more: the shape never depends on the states.
        """
        first = self.first_child[states][..., None]
        count = self.first_child[states + 1][..., None] - first
        slot = torch.arange(max(self.fanout, slots), device=states.device)
        return torch.where(slot < count, first + slot, self.dead)

    def advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The states (...) after one more token (...) each; `dead` where it is not legal."""
        children = self.children(states)
        legal = (self.tokens[children] == tokens[..., None]) & (children != self.dead)
        return torch.where(legal, children, self.dead).amin(-1)  # `dead` is the largest state

    def walk(self, sequences: Tensor) -> Tensor:
        """The states (..., l + 1) along `sequences` (..., l): root first, one after every token."""
        states = [torch.zeros_like(sequences[..., 0])]
        for column in sequences.unbind(-1):
            states.append(self.advance(states[-1], column))
        return torch.stack(states, -1)
