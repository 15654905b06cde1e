"""A T5 decoder as a reader of the token tree, so that `beamsd` decodes TIGER."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import dropout, embedding
from transformers import DynamicCache, EncoderDecoderCache
from transformers.models.t5.modeling_t5 import T5Attention, T5Stack

from beamsd import Tree
from beamsd.compat import cache_argument
from beamsd.models.reader import TreeOutput

BLOCK = 2**19  # numbers, 2 MiB: about what the second-level cache of a CPU core holds


class T5Reader:
    """Reads a token tree with a T5 decoder; a `beamsd.models.reader.TreeReader`.

    A node attends to the nodes on its path and to the row's encoder output. A path is as long as an identifier at most,
    so its keys and values are gathered, a few rows at a time on a CPU: with small heads that costs less than attention
    with a mask, with large ones as much. T5's positions are relative, so a node's position is its depth in the tree.
    """

    def __init__(
        self, decoder: T5Stack, head: Callable[[Tensor], Tensor], hidden: Tensor, attention_mask: Tensor, longest: int
    ):
        """head: states (..., d_model) -> logits (..., V). hidden: (B, S, d_model) of the encoder. attention_mask:
        (B, S). longest: nodes on a path, the root included, at most."""
        self.decoder, self.head, self.longest = decoder, head, longest
        self.hidden, self.mask = hidden, attention_mask
        self.begin(len(hidden))

    @property
    def nbytes(self) -> int:
        """Of its keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)

    def begin(self, batch: int) -> None:
        """Start over."""
        self.forwards: list[int] = []
        self.read = 0
        self.layers: list[tuple[Tensor, Tensor]] = []  # keys and values (B, read, inner) of each layer
        self.cross = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def catch_up(self, tree: Tree, since: int) -> TreeOutput:
        """Read all nodes that are new; returns the outputs at the nodes from slot `since` on."""
        tokens, depths, paths = tree.tokens[:, self.read : tree.size], tree.positions(self.read), self._paths(tree)
        decoder, length = self.decoder, paths.shape[-1]
        # The bias of a step up the path: that of the last position of a text, from itself backwards.
        bias = decoder.block[0].layer[0].SelfAttention.compute_bias(length, length)[0, :, -1].flip(-1).T  # (p, H)
        above = torch.arange(length, device=paths.device) > depths[..., None]
        bias = bias.masked_fill(above[..., None], -torch.inf)  # (B, n, p, H)
        unread = (1 - self.mask[:, None, None].to(bias.dtype)) * torch.finfo(bias.dtype).min
        row = torch.arange(len(paths), device=paths.device)[:, None, None]
        places = paths + row * tree.size  # in all rows' slots one after another
        states, before = decoder.dropout(decoder.embed_tokens(tokens)), self.layers or [None] * len(decoder.block)
        self.layers = []
        for block, kept in zip(decoder.block, before, strict=True):
            own, cross, feed_forward = block.layer
            attended, kept = _attend(own.SelfAttention, own.layer_norm(states), kept, places, bias)
            self.layers.append(kept)
            states = cross(
                states + own.dropout(attended), key_value_states=self.hidden, position_bias=unread, is_causal=False,
                **{cache_argument(cross): self.cross},
            )[0]  # fmt: skip
            states = by_rows(feed_forward, states.shape[1] * decoder.config.d_ff, states)
        states = decoder.dropout(decoder.final_layer_norm(states))
        self.forwards.append(tree.size - self.read)
        self.read = tree.size
        return TreeOutput(states[:, since - tree.size :], since, self.head)

    def _paths(self, tree: Tree) -> Tensor:
        """The slots (B, n, p) from each new node up to the root; what stands beyond the root is masked later."""
        longest = self.longest
        if tree.tokens.device.type == "cpu":  # elsewhere, looking would be a host sync
            longest = int(tree.positions(self.read).max()) + 1
        path = [torch.arange(self.read, tree.size, device=tree.tokens.device).expand(len(tree.tokens), -1)]
        while len(path) < longest:
            path.append(tree.parents.gather(1, path[-1]))
        return torch.stack(path, -1)

    def keep(self, slots: Tensor, capacity: int) -> None:
        """Keep the nodes at `slots` (B, m) only, in that order."""
        self.read = slots.shape[1]
        index = slots[..., None]
        self.layers = [
            tuple(each.gather(1, index.expand(-1, -1, each.shape[-1])) for each in kept) for kept in self.layers
        ]

    def keep_rows(self, rows: Tensor) -> None:
        """Keep these rows (b,) of the batch only."""
        self.hidden, self.mask = self.hidden[rows], self.mask[rows]
        self.layers = [(keys[rows], values[rows]) for keys, values in self.layers]
        self.cross.batch_select_indices(rows)

    def bookmark(self) -> tuple[int, ...]:
        """Where it stands, for `return_to`."""
        return (self.read, *self.forwards)

    def return_to(self, bookmark: tuple[int, ...]) -> None:
        """Forget what was read since the bookmark."""
        size, *self.forwards = bookmark
        self.forget(size)

    def forget(self, size: int) -> None:
        """Forget all nodes from slot `size` on."""
        self.read = size
        self.layers = [(keys[:, :size], values[:, :size]) for keys, values in self.layers]


def _attend(
    attention: T5Attention, states: Tensor, before: tuple[Tensor, Tensor] | None, places: Tensor, bias: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """T5's attention, unscaled, of every node to its path; and keys and values with those of these nodes."""
    query, keys, values = attention.q(states), attention.k(states), attention.v(states)
    if before is not None:
        keys, values = torch.cat([before[0], keys], 1), torch.cat([before[1], values], 1)
    heads = torch.eye(bias.shape[-1], device=bias.device).repeat_interleave(attention.key_value_proj_dim, 0)

    def mix(query: Tensor, places: Tensor, bias: Tensor) -> Tensor:
        scores = (query[:, :, None] * embedding(places, keys.flatten(0, 1))) @ heads + bias  # (b, n, p, H)
        weights = dropout(scores.softmax(2), attention.dropout, attention.training)
        return ((weights @ heads.T) * embedding(places, values.flatten(0, 1))).sum(2)

    mixed = by_rows(mix, places.shape[1] * places.shape[2] * query.shape[2], query, places, bias)
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
