"""A model that reads the tree. Target and draft are the same class; each lags behind the tree and catches up."""

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from beamsd.tree import Tree


@dataclass(frozen=True)
class Reading:
    """What a model says after the nodes from slot `since` on."""

    log_probs: Tensor  # (B, n - since, V) float32, of the next token, over the full vocabulary
    since: int


class Reader:
    """A model, its preallocated KV cache, and how far into the tree that cache has read."""

    def __init__(self, model: PreTrainedModel, capacity: int):
        """capacity: nodes that the tree, and so the cache, can hold.

        Raises ValueError for a model whose cache layers forget (sliding windows): they cannot attend over a tree.
        """
        self.model = model
        self.capacity = capacity
        self.cache = StaticCache(config=model.config, max_cache_len=capacity)
        self.read = 0
        if any(layer.is_sliding for layer in self.cache.layers):
            raise ValueError(
                f"{type(model).__name__} uses sliding-window attention, which a token tree does not support yet; "
                "set sliding_window=None in its config if its window is longer than prompt and tree"
            )

    def catch_up(self, tree: Tree, since: int) -> Reading:
        """Read every node that was missed; returns the log-probabilities after the nodes from slot `since`."""
        assert self.read <= since < tree.size, (self.read, since, tree.size)
        logits = self.model(
            input_ids=tree.tokens[:, self.read : tree.size],
            attention_mask=tree.additive_mask(self.read, self.capacity, self.model.dtype),
            position_ids=tree.positions(self.read),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=tree.size - since,
        ).logits
        self.read = tree.size
        # The same operation as in transformers' beam search, so that even ties are settled alike.
        return Reading(logits.float().log_softmax(-1), since)
