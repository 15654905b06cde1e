"""The token tree: the one data structure that drafting, verification and training share.

A node is a token, and `visible` says which nodes it attends to: its ancestors and itself. Slot order in the tree *is*
slot order in every KV cache, so a cache is never edited: a rejected node is simply never seen again.

Shapes: B requests, m new nodes, n nodes in use.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Tree:
    """An append-only token tree per request, preallocated: nodes are written into slots, nothing is ever moved.

    >>> tree = Tree.trunk(torch.tensor([[11, 12]]), None, capacity=4)   # a prompt of two tokens
    >>> tree.append(torch.tensor([[1, 1]]), torch.tensor([[21, 22]]))               # two children of its last node
    tensor([[2, 3]])
    >>> tree.visible[0].int()
    tensor([[1, 0, 0, 0],
            [1, 1, 0, 0],
            [1, 1, 1, 0],
            [1, 1, 0, 1]], dtype=torch.int32)
    >>> tree.positions()
    tensor([[0, 1, 2, 2]])
    """

    tokens: Tensor  # (B, capacity)           long
    parents: Tensor  # (B, capacity)           long, slots
    visible: Tensor  # (B, capacity, capacity) bool, visible[b, i, j]: node i attends to node j
    size: int  # n, slots in use; the same in every row
    causal: int = 0  # the first slots that attend to all slots before them, in every row: of prompts without padding

    @property
    def capacity(self) -> int:
        return self.tokens.shape[1]

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.parents.nbytes + self.visible.nbytes

    @classmethod
    def empty(cls, batch: int, capacity: int, device: torch.device) -> Tree:
        """Trees of no node that can hold `capacity`."""
        return cls(
            tokens=torch.zeros(batch, capacity, dtype=torch.long, device=device),
            parents=torch.zeros(batch, capacity, dtype=torch.long, device=device),
            visible=torch.zeros(batch, capacity, capacity, dtype=torch.bool, device=device),
            size=0,
        )

    @classmethod
    def trunk(cls, input_ids: Tensor, attention_mask: Tensor | None, capacity: int) -> Tree:
        """The left-padded prompts (B, P), as trees without branches that can hold `capacity` >= P nodes."""
        tree = cls.empty(len(input_ids), capacity, input_ids.device)
        tree.reset(input_ids, attention_mask)
        return tree

    def reset(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        """Start over with the left-padded prompts (B, P) alone. attention_mask: None where the host knows that nothing
        is padded."""
        P = input_ids.shape[1]
        assert self.capacity >= P, (self.capacity, P)
        slot = torch.arange(P, device=input_ids.device)
        self.size, self.causal = P, P if attention_mask is None else 0
        self.tokens[:, :P] = input_ids
        self.parents[:, :P] = (slot - 1).clamp(min=0)
        earlier = slot[:, None] >= slot
        if attention_mask is not None:
            # Padding attends to itself alone: no softmax over an empty row, and position 0.
            earlier = earlier & attention_mask.bool()[:, None] | (slot[:, None] == slot)
        self.visible[:, :P, :P] = earlier

    def append(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Append one child to each parent, both (B, m); returns the new nodes' slots (B, m)."""
        B, m = tokens.shape
        start, end = self.size, self.size + m
        assert end <= self.capacity, f"the tree holds {self.capacity} nodes, {end} are needed"
        nodes = torch.arange(start, end, device=tokens.device)
        self.tokens[:, start:end] = tokens
        self.parents[:, start:end] = parents
        self.visible[:, start:end] = self.visible.gather(1, parents[..., None].expand(B, m, self.capacity))
        self.visible.diagonal(dim1=1, dim2=2)[:, start:end].fill_(True)
        self.size = end
        return nodes.expand(B, m)

    def cut(self, size: int) -> None:
        """Forget the nodes from slot `size` on, as long as no cache that goes on has read them."""
        self.size = size

    def rows(self, rows: Tensor) -> Tree:
        """The trees of these rows (b,) alone."""
        return Tree(self.tokens[rows], self.parents[rows], self.visible[rows], self.size, self.causal)

    def live(self, nodes: Tensor, below: int) -> Tensor:
        """Which slots (B, below) hold a node that `nodes` (B, m) still attend to; the others are dead."""
        visible = self.visible[..., :below]
        return visible.gather(1, nodes[..., None].expand(*nodes.shape, below)).any(1)

    def keep(self, slots: Tensor, capacity: int) -> tuple[Tree, Tensor]:
        """A tree of `capacity` that holds the nodes at `slots` (B, m) only, in that order.

        Returns it and where every old slot is now (B, n); for a node that is gone the slot is any.
        """
        B, m = slots.shape
        now = slots.new_zeros(B, self.size).scatter(1, slots, torch.arange(m, device=slots.device).expand(B, m))
        kept = Tree(
            tokens=self.tokens.new_zeros(B, capacity), parents=self.parents.new_zeros(B, capacity),
            visible=self.visible.new_zeros(B, capacity, capacity), size=m,
        )  # fmt: skip
        kept.tokens[:, :m] = self.tokens.gather(1, slots)
        kept.parents[:, :m] = now.gather(1, self.parents.gather(1, slots))
        rows = self.visible.gather(1, slots[..., None].expand(B, m, self.visible.shape[2]))
        kept.visible[:, :m, :m] = rows.gather(2, slots[:, None].expand(B, m, m))
        return kept, now

    def positions(self, start: int = 0) -> Tensor:
        """Position ids (B, n - start) of the nodes from slot `start`: how many nodes each attends to before itself."""
        return self.visible[:, start : self.size].sum(-1) - 1

    def additive_mask(self, start: int, width: int, dtype: torch.dtype) -> Tensor:
        """Attention mask (B, 1, n - start, width) for the nodes from slot `start`: 0 where seen, the dtype's floor
        where not. Additive, because transformers passes a 4-D mask on as it is and eager attention adds it."""
        seen = self.visible[:, None, start : self.size, :width]
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)
