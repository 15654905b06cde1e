"""A model that reads the tree. Target and draft are the same class; each lags behind the tree and catches up."""

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from beamsd.tree import Tree


@dataclass(frozen=True)
class Reading:
    """What a model says after the nodes from slot `since` on."""

    log_probs: Tensor  # (B, n - since, V) float32, of the next token, over the full vocabulary
    since: int

    def at(self, nodes: Tensor) -> Tensor:
        """After `nodes` (B, K): a copy (B, K, V)."""
        rows = (nodes - self.since)[..., None].expand(*nodes.shape, self.log_probs.shape[-1])
        return self.log_probs.gather(1, rows)


class TreeLayer(DynamicLayer):
    """One layer's keys and values, preallocated: slot order is that of the tree, and nothing is moved but by `keep`."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.read = capacity, 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append the keys and values (B, heads, m, d) of m nodes; returns those of all nodes read so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.all_keys = key_states.new_zeros(*key_states.shape[:2], self.capacity, key_states.shape[-1])
            self.all_values = value_states.new_zeros(*value_states.shape[:2], self.capacity, value_states.shape[-1])
        start, self.read = self.read, self.read + key_states.shape[2]
        self.all_keys[:, :, start : self.read] = key_states
        self.all_values[:, :, start : self.read] = value_states
        self.keys, self.values = self.all_keys[:, :, : self.read], self.all_values[:, :, : self.read]
        return self.keys, self.values

    def keep(self, slots: Tensor, capacity: int) -> None:
        """Keep the nodes at `slots` (B, m) only, in that order."""
        self.capacity, self.read = capacity, slots.shape[1]

        def kept(states: Tensor) -> Tensor:
            B, heads, _, d = states.shape
            new = states.new_zeros(B, heads, capacity, d)
            new[:, :, : self.read] = states.gather(2, slots[:, None, :, None].expand(B, heads, self.read, d))
            return new

        self.all_keys, self.all_values = kept(self.all_keys), kept(self.all_values)


def takes(model: PreTrainedModel) -> set[str]:
    """The names of what a model's forward takes, also of one that peft has wrapped."""
    return set(inspect.signature(getattr(model, "get_base_model", lambda: model)().forward).parameters)


class Reader:
    """A model, its preallocated KV cache, and how far into the tree that cache has read."""

    def __init__(self, model: PreTrainedModel, capacity: int, longest: int, *, raw: bool = False):
        """capacity: nodes that the tree, and so the cache, can hold. longest: tokens of prompt and answer, which bound
        the positions. raw: read logits in place of log-probabilities."""
        self.model, self.longest, self.raw = model, longest, raw
        self.layers = [TreeLayer(capacity) for _ in DynamicCache(config=model.config).layers]
        self.cache = Cache(layers=self.layers)
        self.read = 0
        self.keeps_logits = "logits_to_keep" in takes(model)

    def catch_up(self, tree: Tree, since: int) -> Reading:
        """Read every node that was missed; returns the log-probabilities after the nodes from slot `since`."""
        assert self.read <= since < tree.size, (self.read, since, tree.size)
        kept = {"logits_to_keep": tree.size - since} if self.keeps_logits else {}
        logits = self.model(
            input_ids=tree.tokens[:, self.read : tree.size],
            attention_mask=tree.additive_mask(self.read, tree.size, self.model.dtype),
            position_ids=tree.positions(self.read).clamp(max=self.longest - 1),
            past_key_values=self.cache,
            use_cache=True,
            return_dict=True,
            **kept,
        ).logits[:, since - tree.size :]
        self.read = tree.size
        if self.layers[0].read != self.read:
            raise RuntimeError(
                f"{type(self.model).__name__} did not fill its cache; gradient checkpointing in training mode does "
                "that: call model.eval()"
            )
        # The same operations as in transformers' beam search, so that even ties are settled alike.
        logits = logits.to(dtype=torch.float32, copy=self.raw)
        return Reading(logits if self.raw else logits.log_softmax(-1), since)

    def keep(self, slots: Tensor, capacity: int) -> None:
        """Follow a tree of which only the nodes at `slots` (B, m) are left, among those that were read."""
        self.read = slots.shape[1]
        for layer in self.layers:
            layer.keep(slots, capacity)
