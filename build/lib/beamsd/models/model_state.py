"""Facts about models, cached until the state that they depend on changes."""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor
from torch.nn import Parameter

from beamsd.compat import attention_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Fact = TypeVar("Fact")

ADAPTERS = ("_disable_adapters", "_active_adapter", "merged_adapters", "scaling")  # what peft's layers go by
LOOKED_AT = 16
PLAIN = (Parameter, Tensor)  # quantised weights are of other classes, and may have no memory of their own


class Basis(Protocol):
    """The part of a model's state that a cached fact depends on."""

    def __init__(self, model: PreTrainedModel): ...

    def holds(self, model: PreTrainedModel) -> bool:
        """Whether the model is still the same."""


class PerModel(Generic[Fact]):
    """Caches a fact about each model, and computes it again when the state that it depends on has changed.

    Thread-safe: one thread computes, the others wait for it.
    """

    def __init__(self, basis: type[Basis]):
        self._basis, self._lock = basis, RLock()
        self._facts: WeakKeyDictionary[PreTrainedModel, tuple[Basis, Fact]] = WeakKeyDictionary()

    def __call__(self, model: PreTrainedModel, find: Callable[[PreTrainedModel], Fact]) -> Fact:
        """The fact, computed by `find` if need be; it must not hold the model, which would then never be freed."""
        if (kept := self._of(model)) is None:
            with self._lock:
                if (kept := self._of(model)) is None:
                    kept = self._facts[model] = self._basis(model), find(model)
        return kept[1]

    def _of(self, model: PreTrainedModel) -> tuple[Basis, Fact] | None:
        kept = self._facts.get(model)
        return kept if kept and kept[0].holds(model) else None


def parts(model: PreTrainedModel) -> tuple[nn.Module, nn.Module, nn.Module | None]:
    """The model below what peft has wrapped, its body and its head, as they are now."""
    whole = getattr(model, "get_base_model", lambda: model)()
    return whole, whole.base_model, whole.get_output_embeddings()


class ModelForm:
    """Attention, dtype, device, mode and modules of a model, whatever the values of its weights."""

    def __init__(self, model: PreTrainedModel):
        own = (part and ref(part) for part in parts(model))
        self._facts = (attention_of(model), model.dtype, model.device, model.training, *own)

    def holds(self, model: PreTrainedModel) -> bool:
        return self._facts == ModelForm(model)._facts


class WeightState:
    """Which weights and adapters a model computes with.

    Writing into a weight by way of its `.data`, as peft does when it merges an adapter, leaves no trace; it is seen if
    it changes one of a few values that are looked at, `LOOKED_AT` along the diagonal of each weight.
    """

    def __init__(self, model: PreTrainedModel):
        """Raises ValueError if the weights were made under torch.inference_mode(), where no change leaves a trace."""
        weights, adapters = _contents(model)
        if any(weight.is_inference() for weight in weights):
            raise ValueError(
                f"{type(model).__name__} has weights that were made under torch.inference_mode(), whose changes leave "
                "no trace: load it outside of that, or use neither prefix nor capture"
            )
        self._form, self._adapters = ModelForm(model), adapters
        self._refs = [ref(weight) for weight in weights]  # while they are held, no other weight has their ids
        self._traces = _traces(weights)
        views: dict[tuple, list[Tensor]] = {}
        for weight in weights:
            if type(weight) in PLAIN and not weight.is_meta:
                shape = weight.shape or (1,)
                size = min(LOOKED_AT, *shape)
                step = sum(weight.stride()) * (min(shape) // max(size, 1))
                view = weight.detach().as_strided((size,), (step,))
                views.setdefault((weight.dtype, weight.device), []).append(view)
        self._views = list(views.values())
        self._seen = self._look()

    def holds(self, model: PreTrainedModel) -> bool:
        weights, adapters = _contents(model)
        return (
            adapters == self._adapters and self._form.holds(model) and _traces(weights) == self._traces
            and all(map(torch.equal, self._seen, self._look()))
        )  # fmt: skip

    def _look(self) -> list[Tensor]:
        return [torch.cat(views) for views in self._views]


def _contents(model: nn.Module) -> tuple[list[Tensor], list[str]]:
    """The weights, and what says which adapters are used; not by `model.modules()`, which takes four times as long."""
    weights, adapters, left = [], [], [model]
    while left:
        module = vars(left.pop())
        left += filter(None, module["_modules"].values())
        weights += module["_parameters"].values()
        if buffers := module["_buffers"]:  # those that are not saved, such as rotary frequencies, follow from the rest
            weights += [buffers[name] for name in buffers.keys() - module["_non_persistent_buffers_set"]]
        if "merged_adapters" in module or "_active_adapter" in module:
            adapters.append(str([module.get(name) for name in ADAPTERS]))
    return [weight for weight in weights if weight is not None], adapters


def _traces(weights: list[Tensor]) -> list[tuple[int, int, int]]:
    """What changes with a weight: which it is, where it lies, and how often it was written to."""
    return [
        (
            id(ref(weight)), weight.data_ptr() if type(weight) in PLAIN else 0,
            -1 if weight.is_inference() else weight._version,
        )
        for weight in weights
    ]  # fmt: skip
