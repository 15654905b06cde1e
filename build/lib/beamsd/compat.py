"""Differences between transformers releases, detected by feature, never by version number."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.cache_utils import CacheLayerMixin
    from transformers.generation import LogitsProcessor

__all__ = [
    "CACHE_NAMES", "CHECKPOINTING_NAMES", "PASSED_BY_GENERATE", "Cache", "DynamicLayer", "attention_of",
    "cache_argument", "cache_layers", "is_builtin", "known_name", "passed_cache", "takes",
]  # fmt: skip

# What `forward`, and so `generate`, calls the keys and values that it is to go on from; the first is the newest.
CACHE_NAMES = ("cache", "past_key_values")
# What a model, and the Trainer's arguments, call computing activations again in the backward pass.
CHECKPOINTING_NAMES = ("activation_checkpointing", "gradient_checkpointing")
# Keyword arguments that `generate` makes for itself and passes on to a `custom_generate`.
PASSED_BY_GENERATE = {
    *CACHE_NAMES, "attention_mask", "position_ids", "use_cache", "logits_to_keep", "cache_position"
}  # fmt: skip


def takes(module: nn.Module) -> set[str]:
    """The names of what a module's forward takes, also of a model that peft has wrapped."""
    return set(inspect.signature(getattr(module, "get_base_model", lambda: module)().forward).parameters)


def known_name(names: Sequence[str], known: Collection[str]) -> str | None:
    """The first of `names`, which mean the same, that is known; None if none is."""
    return next((name for name in names if name in known), None)


def cache_argument(module: nn.Module) -> str | None:
    """The name under which a module's forward takes a cache; None if it takes none."""
    return known_name(CACHE_NAMES, takes(module))


def passed_cache(model_kwargs: Mapping[str, Any]) -> Cache | None:
    """The cache among what `generate` passes on to a `custom_generate`."""
    return next((model_kwargs[name] for name in CACHE_NAMES if model_kwargs.get(name) is not None), None)


def cache_layers(config: PreTrainedConfig) -> list[CacheLayerMixin]:
    """The cache layers, empty, that transformers itself makes for a model."""
    return DynamicCache(config=config).layers


def attention_of(model: PreTrainedModel) -> str | None:
    """The attention implementation of a model, such as "sdpa"; no public name tells it."""
    return getattr(model.config, "_attn_implementation", None)


def is_builtin(processor: LogitsProcessor) -> bool:
    """Whether a logits processor is one of transformers' own."""
    return type(processor).__module__.startswith("transformers.generation.")
