"""Reading without tree attention: every drafted path as a sequence of its own. An ablation (AtSpeed, section 4.4)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from beamsd.compat import Cache, DynamicLayer
from beamsd.models.reader import Reader, TreeLayer, TreeOutput
from beamsd.tree import Tree


class PathReader(Reader):
    """A `Reader` that copies keys and values for each path from the root to a leaf, and reads what is new of each.

    A node on several paths is read once for each; its outputs are the same on all. `forwards` count what was read.
    """

    def bookmark(self) -> tuple[int, ...]:
        return self.read, *self.forwards

    def return_to(self, bookmark: tuple[int, ...]) -> None:
        self.read, self.forwards = bookmark[0] if bookmark else self.start, list(bookmark[1:])
        for layer in self.layers:
            layer.read = self.read

    def catch_up(self, tree: Tree, since: int) -> TreeOutput:
        """Read all nodes that are new; returns the outputs at the nodes from slot `since` on."""
        if self.read == self.start:  # the prompts, which all paths share
            trunk = super().catch_up(replace(tree, size=since + 1), since)
            if tree.size == since + 1:
                return trunk
            paths = self._read_paths(tree)
            return replace(trunk, states=torch.cat([trunk.states, paths.states], 1))
        output = self._read_paths(tree)
        return replace(output, states=output.states[:, since - tree.size :], since=since)

    def _read_paths(self, tree: Tree) -> TreeOutput:
        """The outputs at all new nodes. Rows with fewer leaves than others read the paths to other nodes too."""
        first, B = self.read, len(tree.tokens)
        seen = tree.visible[:, first : tree.size, : tree.size]
        leaves = seen[..., first:].sum(1) == 1  # those that themselves alone attend to
        W = int(leaves.sum(-1).max())
        chosen = leaves.int().argsort(dim=-1, descending=True, stable=True)[:, :W]
        seen = seen.gather(1, chosen[..., None].expand(-1, -1, tree.size))  # (B, W, n)
        past, is_past = _slots(seen[..., :first])
        new, is_new = _slots(seen[..., first:])
        m = new.shape[-1]
        causal = torch.ones(m, m, dtype=torch.bool, device=new.device).tril()
        mask = torch.cat([is_past[:, :, None].expand(-1, -1, m, -1), causal.expand(B, W, m, m)], -1).flatten(0, 1)
        floor = torch.finfo(self.model.dtype).min
        additive = torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device).masked_fill_(~mask, floor)
        layers = [_copied(layer, past) for layer in self.layers]
        (name,) = self.cache
        flat = new.flatten(1)
        states, head = self.run(
            tree.tokens[:, first : tree.size].gather(1, flat).view(B * W, m), m,
            attention_mask=additive[:, None],
            position_ids=tree.positions(first).clamp(max=self.longest - 1).gather(1, flat).view(B * W, m),
            **{name: Cache(layers=layers)},
        )  # fmt: skip

        # Where every new node stands on some path; what fills up the shorter ones goes to a place beyond.
        n = tree.size - first
        at = torch.arange(W * m, device=flat.device).expand(B, -1)
        place = flat.new_zeros(B, n + 1).scatter(1, flat.masked_fill(~is_new.flatten(1), n), at)[:, :n]
        for layer, each in zip(self.layers, layers, strict=True):
            for all_of, read in ((layer.all_keys, each.keys), (layer.all_values, each.values)):
                on_paths = read[:, :, -m:].view(B, W, *read[:, :, -m:].shape[1:]).transpose(1, 2).flatten(2, 3)
                all_of[:, :, first : tree.size] = on_paths.gather(2, _wide(place, on_paths))
            layer.read = tree.size
        self.forwards.append(W * m)
        self.read = tree.size
        states = states.reshape(B, W * m, -1)
        return TreeOutput(states.gather(1, place[..., None].expand(-1, -1, states.shape[-1])), first, head)


def _slots(seen: Tensor) -> tuple[Tensor, Tensor]:
    """The slots (B, W, m) that (B, W, n) are true, in order, filled up by others; and which are not filled up."""
    most = int(seen.sum(-1).max())
    slots = seen.int().argsort(dim=-1, descending=True, stable=True)[..., :most]
    return slots, seen.gather(-1, slots)


def _copied(layer: TreeLayer, slots: Tensor) -> DynamicLayer:
    """A layer (B * W, heads, m, d) of copies of the keys and values at `slots` (B, W, m)."""
    copied = DynamicLayer()
    copied.lazy_initialization(layer.all_keys, layer.all_values)
    B, W, m = slots.shape

    def of_paths(states: Tensor) -> Tensor:
        heads, d = states.shape[1], states.shape[-1]
        on_paths = states.gather(2, _wide(slots.flatten(1), states))
        return on_paths.view(B, heads, W, m, d).transpose(1, 2).reshape(B * W, heads, m, d)

    copied.keys, copied.values = of_paths(layer.all_keys), of_paths(layer.all_values)
    return copied


def _wide(slots: Tensor, states: Tensor) -> Tensor:
    """Slots (B, m), as an index of keys or values (B, heads, n, d) along n."""
    return slots.to(states.device)[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[-1])
