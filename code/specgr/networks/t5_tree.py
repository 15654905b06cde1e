"""T5's decoder over a tree of tokens: prefixes that share their beginnings are read once, and in one pass.

A node attends to the nodes on its path and to the row's encoder output. A path is as long as an identifier at most, so
its keys and values are gathered, a few rows at a time on a CPU: with small heads that costs less than attention with a
mask, with large ones as much.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, embedding
from transformers import DynamicCache, EncoderDecoderCache
from transformers.models.t5.modeling_t5 import T5Attention, T5Stack

from beamsd.compat import cache_argument

BLOCK = 2**19  # numbers, 2 MiB: about what the second-level cache of a CPU core holds


@dataclass
class Cache:
    """What a decoder keeps of the nodes that it has read, in slots that are never moved."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # keys and values (B, slots, inner) a layer
    cross: EncoderDecoderCache = field(default_factory=lambda: EncoderDecoderCache(DynamicCache(), DynamicCache()))

    @property
    def slots(self) -> int:
        return self.layers[0][0].shape[1] if self.layers else 0

    def crop(self, slots: int) -> None:
        """Forget all but the first `slots`."""
        self.layers = [(keys[:, :slots], values[:, :slots]) for keys, values in self.layers]

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these (b,)."""
        self.layers = [(keys[rows], values[rows]) for keys, values in self.layers]
        self.cross.batch_select_indices(rows)


def read(
    decoder: T5Stack, tokens: Tensor, depths: Tensor, paths: Tensor, hidden: Tensor, attention_mask: Tensor,
    cache: Cache,
) -> Tensor:  # fmt: skip
    """One pass over n nodes, which are appended to the cache in their order.

    tokens: (B, n) long. depths: (n,) long, tokens before a node on its path. paths: (B, n, p) long, the slots of the
    nodes on a path from depth 0 on, the node itself included; what stands after that is not looked at.
    hidden: (B, S, d_model). attention_mask: (B, S). Returns states (B, n, d_model).

    T5 counts positions in the order of its inputs; here a position is a depth.
    """
    length = paths.shape[-1]
    bias = decoder.block[0].layer[0].SelfAttention.compute_bias(length, length)[0].permute(1, 2, 0)  # (p, p, H)
    later = torch.ones(length, length, dtype=torch.bool, device=bias.device).triu(1)
    bias = bias.masked_fill(later[..., None], -torch.inf)[depths]  # (n, p, H)
    unread = (1 - attention_mask[:, None, None].to(bias.dtype)) * torch.finfo(bias.dtype).min
    row = torch.arange(len(paths), device=paths.device)[:, None, None]
    places = paths + row * (cache.slots + tokens.shape[1])  # in all rows' slots one after another
    states, layers = decoder.dropout(decoder.embed_tokens(tokens)), cache.layers or [None] * len(decoder.block)
    cache.layers = []
    for block, before in zip(decoder.block, layers, strict=True):
        own, cross, feed_forward = block.layer
        attended, kept = _attend(own.SelfAttention, own.layer_norm(states), before, places, bias)
        cache.layers.append(kept)
        states = cross(
            states + own.dropout(attended), key_value_states=hidden, position_bias=unread, is_causal=False,
            **{cache_argument(cross): cache.cross},
        )[0]  # fmt: skip
        states = by_rows(feed_forward, states.shape[1] * decoder.config.d_ff, states)
    return decoder.dropout(decoder.final_layer_norm(states))


def _attend(
    attention: T5Attention, states: Tensor, before: tuple[Tensor, Tensor] | None, places: Tensor, bias: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """T5's attention, unscaled, of every node to its path; and keys and values with those of these nodes."""
    query, keys, values = attention.q(states), attention.k(states), attention.v(states)
    if before is not None:
        keys, values = torch.cat([before[0], keys], 1), torch.cat([before[1], values], 1)
    heads = torch.eye(bias.shape[-1], device=bias.device).repeat_interleave(attention.key_value_proj_dim, 0)

    def mix(query: Tensor, places: Tensor) -> Tensor:
        scores = (query[:, :, None] * embedding(places, keys.flatten(0, 1))) @ heads + bias  # (b, n, p, H)
        weights = dropout(scores.softmax(2), attention.dropout, attention.training)
        return ((weights @ heads.T) * embedding(places, values.flatten(0, 1))).sum(2)

    mixed = by_rows(mix, places.shape[1] * places.shape[2] * query.shape[2], query, places)
    return attention.o(mixed), (keys, values)


def by_rows(function: Callable[..., Tensor], size: int, *arguments: Tensor) -> Tensor:
    """function(*arguments), on a CPU so many rows at a time that what it works on stays in the cache.

    function: row for row. size: numbers a row that it makes on its way.
    """
    rows = max(1, BLOCK // max(1, size)) if arguments[0].device.type == "cpu" else len(arguments[0])
    if rows >= len(arguments[0]):
        return function(*arguments)
    parts = zip(*(argument.split(rows) for argument in arguments), strict=True)
    return torch.cat([function(*some) for some in parts])


def draft_paths(owners: Tensor, first_slot: int, length: int) -> Tensor:
    """The paths of M chains of `length` nodes each, which lie in slots from `first_slot` on, below the nodes that end
    the paths `owners` (B, M, d). Returns (B, M * length, d + length)."""
    batch, m, _ = owners.shape
    slots = first_slot + torch.arange(m * length, device=owners.device).view(1, m, length)
    whole = torch.cat([owners, slots.expand(batch, -1, -1)], -1)
    return whole.repeat_interleave(length, 1)


def pad_paths(paths: Tensor, length: int) -> Tensor:
    """paths (B, n, p), as long as `length`."""
    return nn.functional.pad(paths, (0, length - paths.shape[-1]))
