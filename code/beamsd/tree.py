"""The token tree: the one data structure that drafting, verification and training share.

A node is a token, and `sees` says which nodes it attends to: its ancestors and itself. Slot order in the tree *is* slot
order in every KV cache, so a cache is never edited: a rejected node is simply never seen again.

Shapes: B requests, m new nodes, n nodes in use.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Tree:
    """An append-only token tree per request, preallocated: nodes are written into slots, nothing is ever moved."""

    tokens: Tensor  # (B, capacity)           long
    parents: Tensor  # (B, capacity)           long, slots
    sees: Tensor  # (B, capacity, capacity) bool, sees[b, i, j]: node i attends to node j
    size: int  # n, slots in use; the same in every row

    @classmethod
    def trunk(cls, input_ids: Tensor, attention_mask: Tensor, capacity: int) -> "Tree":
        """The left-padded prompts (B, P), as trees without branches that can hold `capacity` >= P nodes."""
        B, P = input_ids.shape
        assert capacity >= P, (capacity, P)
        device = input_ids.device
        slot = torch.arange(P, device=device)
        tree = cls(
            tokens=torch.zeros(B, capacity, dtype=torch.long, device=device),
            parents=torch.zeros(B, capacity, dtype=torch.long, device=device),
            sees=torch.zeros(B, capacity, capacity, dtype=torch.bool, device=device),
            size=P,
        )
        tree.tokens[:, :P] = input_ids
        tree.parents[:, :P] = (slot - 1).clamp(min=0)
        # Padding sees itself and nothing else: no softmax over an empty row, and position 0.
        tree.sees[:, :P, :P] = (slot[:, None] >= slot) & attention_mask.bool()[:, None] | (slot[:, None] == slot)
        return tree

    def grow(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Hang one child under each parent, both (B, m); returns the new nodes' slots (B, m)."""
        B, m = tokens.shape
        start, end = self.size, self.size + m
        capacity = self.tokens.shape[1]
        assert end <= capacity, f"the tree holds {capacity} nodes, {end} are needed"
        nodes = torch.arange(start, end, device=tokens.device)
        self.tokens[:, start:end] = tokens
        self.parents[:, start:end] = parents
        self.sees[:, start:end] = self.sees.gather(1, parents[..., None].expand(B, m, capacity))
        self.sees[:, nodes, nodes] = True
        self.size = end
        return nodes.expand(B, m)

    def positions(self, start: int = 0) -> Tensor:
        """Position ids (B, n - start) of the nodes from slot `start`: how many nodes each one sees before itself."""
        return self.sees[:, start : self.size].sum(-1) - 1

    def additive_mask(self, start: int, width: int, dtype: torch.dtype) -> Tensor:
        """Attention mask (B, 1, n - start, width) for the nodes from slot `start`: 0 where seen, the dtype's floor
        where not. Additive, because transformers passes a 4-D mask on as it is and eager attention adds it."""
        seen = self.sees[:, None, start : self.size, :width]
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)

    def paths(self, nodes: Tensor, length: int) -> Tensor:
        """The last `length` tokens (B, m, length) on the way from the root to each of `nodes` (B, m)."""
        tokens = []
        for _ in range(length):
            tokens.append(self.tokens.gather(1, nodes))
            nodes = self.parents.gather(1, nodes)
        return torch.stack(tokens[::-1], -1)
