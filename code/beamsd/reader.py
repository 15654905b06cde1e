"""A model that reads the tree. Target and draft are the same class; each lags behind the tree and catches up."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from beamsd.head import split
from beamsd.tree import Tree


@dataclass(frozen=True)
class Reading:
    """What a model says after the nodes from slot `since` on; words are scored only where they are asked for."""

    states: Tensor  # (B, n - since, D), what the head reads: hidden states, or logits where there is no head apart
    since: int
    head: Callable[[Tensor], Tensor]

    def logits(self, nodes: Tensor) -> Tensor:
        """Of the word after each of `nodes` (B, m): (B, m, V) float32, over the full vocabulary; never a view."""
        rows = (nodes - self.since)[..., None].expand(*nodes.shape, self.states.shape[-1])
        return self.head(self.states.gather(1, rows)).float()


class TreeLayer(DynamicLayer):
    """One layer's keys and values, preallocated: slot order is that of the tree, and nothing is moved but by `keep`."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.read = capacity, 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append the keys and values (B, heads, m, d) of m nodes; returns those of all nodes read so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            # Not zeroed: no slot is looked at before it is written.
            self.all_keys = key_states.new_empty(*key_states.shape[:2], self.capacity, key_states.shape[-1])
            self.all_values = value_states.new_empty(*value_states.shape[:2], self.capacity, value_states.shape[-1])
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
            new = states.new_empty(B, heads, capacity, d)
            new[:, :, : self.read] = states.gather(2, slots[:, None, :, None].expand(B, heads, self.read, d))
            return new

        self.all_keys, self.all_values = kept(self.all_keys), kept(self.all_values)


def takes(model: PreTrainedModel) -> set[str]:
    """The names of what a model's forward takes, also of one that peft has wrapped."""
    return set(inspect.signature(getattr(model, "get_base_model", lambda: model)().forward).parameters)


class Reader:
    """A model, its preallocated KV cache, and how far into the tree that cache has read."""

    def __init__(self, model: PreTrainedModel, capacity: int, longest: int):
        """capacity: nodes that the tree, and so the cache, can hold. longest: tokens of prompt and answer, which bound
        the positions."""
        self.model, self.longest = model, longest
        self.parts = split(model)
        self.layers = [TreeLayer(capacity) for _ in DynamicCache(config=model.config).layers]
        self.cache = Cache(layers=self.layers)
        self.read = 0
        self.forwards: list[int] = []  # how many tokens a row each of them read

    def catch_up(self, tree: Tree, since: int) -> Reading:
        """Read every node that was missed; returns what the model says after the nodes from slot `since` on."""
        assert self.read <= since < tree.size, (self.read, since, tree.size)
        inputs = {
            "input_ids": tree.tokens[:, self.read : tree.size],
            "attention_mask": tree.additive_mask(self.read, tree.size, self.model.dtype),
            "position_ids": tree.positions(self.read).clamp(max=self.longest - 1),
            "past_key_values": self.cache,
            "use_cache": True,
            "return_dict": True,
        }
        if self.parts:
            states, head = self.parts.body(**inputs).last_hidden_state, self.parts.head
        else:
            kept = {"logits_to_keep": tree.size - since} if "logits_to_keep" in takes(self.model) else {}
            states, head = self.model(**inputs, **kept).logits, nn.Identity()
        self.forwards.append(tree.size - self.read)
        self.read = tree.size
        if self.layers[0].read != self.read:
            raise RuntimeError(
                f"{type(self.model).__name__} did not fill its cache; gradient checkpointing in training mode does "
                "that: call model.eval()"
            )
        return Reading(states[:, since - tree.size :], since, head)

    def keep(self, slots: Tensor, capacity: int) -> None:
        """Follow a tree of which only the nodes at `slots` (B, m) are left, among those that were read."""
        self.read = slots.shape[1]
        for layer in self.layers:
            layer.keep(slots, capacity)
