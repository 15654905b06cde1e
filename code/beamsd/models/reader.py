"""Readers: a model with its KV cache over the token tree. Target and draft lag behind the tree and catch up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from beamsd.compat import Cache, DynamicLayer, cache_argument, cache_layers, takes
from beamsd.models.parts import apply_head, split
from beamsd.tree import Tree

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KeysValues = list[tuple[Tensor, Tensor]]  # of each layer, (B, heads, m, d)


@dataclass(frozen=True)
class TreeOutput:
    """A model's outputs at the nodes from slot `since` on; logits are computed only for the nodes asked for."""

    states: Tensor  # (B, n - since, D), what the head reads: hidden states, or logits where there is no head apart
    since: int
    head: Callable[[Tensor], Tensor]

    def at(self, nodes: Tensor) -> Tensor:
        """The states (B, m, D) at `nodes` (B, m)."""
        return self.states.gather(1, (nodes - self.since)[..., None].expand(*nodes.shape, self.states.shape[-1]))

    def logits(self, nodes: Tensor) -> Tensor:
        """Next-token logits (B, m, V) float32 at `nodes` (B, m), over the full vocabulary; never a view."""
        return apply_head(self.head, self.at(nodes)).float()


class TreeReader(Protocol):
    """Reads a token tree with a model: `Reader`, or one for models that it does not know."""

    forwards: list[int]  # tokens a row that each forward has read
    read: int  # slots of the tree that it has read

    @property
    def nbytes(self) -> int:
        """Of its keys and values."""

    def begin(self, batch: int) -> None:
        """Start over with an empty tree of `batch` rows."""

    def catch_up(self, tree: Tree, since: int) -> TreeOutput:
        """Read all nodes that are new; returns the outputs at the nodes from slot `since` on."""

    def keep(self, slots: Tensor, capacity: int) -> None:
        """Keep the nodes at `slots` (B, m) only, in that order, with room for `capacity`."""

    def bookmark(self) -> tuple[int, ...]:
        """Where it stands, for `return_to`."""

    def return_to(self, bookmark: tuple[int, ...]) -> None:
        """Forget what was read since the bookmark."""


class TreeLayer(DynamicLayer):
    """The preallocated KV cache of one layer, in the slot order of the tree; only `keep` moves anything."""

    def __init__(self, capacity: int, whole: bool):
        """whole: attend over all of the capacity, masked where there is nothing yet, so that shapes stay the same."""
        super().__init__()
        self.capacity, self.whole, self.read = capacity, whole, 0
        self.slots: Tensor | None = None  # (m,) long, where the next nodes go; set beforehand for `whole`

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append the keys and values (B, heads, m, d) of m nodes; returns those of all nodes read so far."""
        if not self.is_initialized:
            self._allocate(key_states, value_states)
        if self.whole:
            assert self.slots is not None
            self.all_keys.index_copy_(2, self.slots, key_states)
            self.all_values.index_copy_(2, self.slots, value_states)
            return self.all_keys, self.all_values
        start, self.read = self.read, self.read + key_states.shape[2]
        self.all_keys[:, :, start : self.read] = key_states
        self.all_values[:, :, start : self.read] = value_states
        self.keys, self.values = self.all_keys[:, :, : self.read], self.all_values[:, :, : self.read]
        return self.keys, self.values

    def begin_with(self, keys: Tensor, values: Tensor, batch: int) -> None:
        """Fill in the keys and values (1, heads, m, d) of the first m nodes of every row."""
        if not self.is_initialized:
            self._allocate(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1))
        self.read = keys.shape[2]
        self.all_keys[:, :, : self.read] = keys
        self.all_values[:, :, : self.read] = values

    def _allocate(self, key_states: Tensor, value_states: Tensor) -> None:
        self.lazy_initialization(key_states, value_states)
        # What was not written is masked, but a mask does not hide a NaN; no other slot is looked at before.
        new = key_states.new_zeros if self.whole else key_states.new_empty
        self.all_keys = new(*key_states.shape[:2], self.capacity, key_states.shape[-1])
        self.all_values = new(*value_states.shape[:2], self.capacity, value_states.shape[-1])

    def keep(self, slots: Tensor, capacity: int) -> None:
        """Keep the nodes at `slots` (B, m) only, in that order."""
        self.capacity, self.read = capacity, slots.shape[1]

        def kept(states: Tensor) -> Tensor:
            B, heads, _, d = states.shape
            new = states.new_empty(B, heads, capacity, d)
            index = slots.to(states.device)[:, None, :, None]  # of a model on several devices, each has some layers
            new[:, :, : self.read] = states.gather(2, index.expand(B, heads, self.read, d))
            return new

        self.all_keys, self.all_values = kept(self.all_keys), kept(self.all_values)


class Reader:
    """A model, its preallocated KV cache, and how far into the tree that cache has read."""

    def __init__(
        self, model: PreTrainedModel, capacity: int, longest: int, *, prefix: KeysValues | None = None,
        body: Callable | None = None,
    ):  # fmt: skip
        """capacity: nodes that the tree, and so the cache, can hold. longest: tokens of prompt and answer, which bound
        the positions. prefix: of the first nodes of every row, which need not be read (see `Prefix`). body: that of the
        model (see `split`), compiled; it then reads with shapes that depend on the capacity and the number of new nodes
        alone."""
        self.model, self.longest, self.capacity = model, longest, capacity
        self.prefix, self.start = prefix, prefix[0][0].shape[2] if prefix else 0
        self.parts, self.compiled = split(model), body
        self.keeps_logits = self.parts is None and "logits_to_keep" in takes(model)
        self.layers = [TreeLayer(capacity, whole=body is not None) for _ in cache_layers(model.config)]
        name = cache_argument(self.parts.body if self.parts else model)
        assert name is not None, "check_model comes first"
        self.cache = {name: Cache(layers=self.layers)}
        self.return_to(())

    @property
    def nbytes(self) -> int:
        """Of its keys and values."""
        made = (layer for layer in self.layers if layer.is_initialized)
        return sum(layer.all_keys.nbytes + layer.all_values.nbytes for layer in made)

    def _fill_cache(self, batch: int) -> None:
        """Read a token, so that the cache is there before anything is compiled; what it wrote is overwritten."""
        assert self.parts is not None
        token = torch.zeros(batch, 1, dtype=torch.long, device=self.model.device)
        for layer in self.layers:
            layer.slots = token[0]
        self.parts.body(input_ids=token, position_ids=token, use_cache=True, **self.cache)

    def begin(self, batch: int) -> None:
        """Start over, in the same cache."""
        self.return_to(())
        for layer, (keys, values) in zip(self.layers, self.prefix or (), strict=bool(self.prefix)):
            layer.begin_with(keys, values, batch)

    def bookmark(self) -> tuple[int, ...]:
        """Where it stands: what its forwards have read."""
        return tuple(self.forwards)

    def return_to(self, bookmark: tuple[int, ...]) -> None:
        self.forwards = list(bookmark)  # how many tokens a row each of them read
        self.read = self.start + sum(bookmark)
        for layer in self.layers:
            layer.read = self.read

    def catch_up(self, tree: Tree, since: int) -> TreeOutput:
        """Read all nodes that are new; returns the outputs at the nodes from slot `since` on."""
        assert self.read <= since < tree.size, (self.read, since, tree.size)
        whole, input_ids = self.compiled is not None, tree.tokens[:, self.read : tree.size]
        mask = None  # for which attention takes faster kernels, of less memory
        if whole or self.read > 0 or tree.size > tree.causal:
            mask = tree.additive_mask(self.read, self.capacity if whole else tree.size, self.model.dtype)
        inputs = {
            "attention_mask": mask, "position_ids": tree.positions(self.read).clamp(max=self.longest - 1), **self.cache,
        }  # fmt: skip
        if self.compiled is not None and self.parts:
            if not self.layers[0].is_initialized:
                self._fill_cache(len(tree.tokens))
            slots = torch.arange(self.read, tree.size, device=tree.tokens.device)
            for layer in self.layers:
                layer.slots, layer.read = slots, tree.size
            input_ids = input_ids.contiguous()  # a slice would be another shape to the compiler
        states, head = self.run(input_ids, tree.size - since, **inputs)
        self.forwards.append(tree.size - self.read)
        self.read = tree.size
        if self.layers[0].read != self.read:
            raise RuntimeError(
                f"{type(self.model).__name__} did not fill its cache; gradient checkpointing in training mode does "
                "that: call model.eval()"
            )
        return TreeOutput(states[:, since - tree.size :], since, head)

    def run(self, input_ids: Tensor, last: int, **inputs: Any) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """One forward; returns what the head reads, of the last so many tokens at least, and the head."""
        inputs |= {"input_ids": input_ids, "use_cache": True, "return_dict": True}
        if self.parts:
            return (self.compiled or self.parts.body)(**inputs).last_hidden_state, self.parts.head
        kept = {"logits_to_keep": last} if self.keeps_logits else {}
        return self.model(**inputs, **kept).logits, nn.Identity()

    def keep(self, slots: Tensor, capacity: int) -> None:
        """Follow a tree of which only the nodes at `slots` (B, m) are left, among those that were read."""
        self.read, self.capacity = slots.shape[1], capacity
        for layer in self.layers:
            layer.keep(slots, capacity)
