"""What has been found out about models, kept for as long as they are what they were then."""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock
from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakKeyDictionary, ref

from beamsd.compat import attention_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Fact = TypeVar("Fact")


class Known(Generic[Fact]):
    """A fact about each model: found out when it is first asked for, and again when what it rests on has changed.

    Safe in threads: one finds out, the others wait for it.
    """

    def __init__(self, rests_on: Callable[[PreTrainedModel], object]):
        """rests_on: gives something that is equal for as long as a fact holds."""
        self._rests_on, self._lock = rests_on, RLock()
        self._facts: WeakKeyDictionary[PreTrainedModel, tuple[object, Fact]] = WeakKeyDictionary()

    def __call__(self, model: PreTrainedModel, find: Callable[[PreTrainedModel], Fact]) -> Fact:
        """The fact, which `find` finds out; it must not hold the model itself, which would then never go."""
        if (kept := self._of(model)) is None:
            with self._lock:
                if (kept := self._of(model)) is None:
                    kept = self._facts[model] = self._rests_on(model), find(model)
        return kept[1]

    def _of(self, model: PreTrainedModel) -> tuple[object, Fact] | None:
        kept = self._facts.get(model)
        return kept if kept and kept[0] == self._rests_on(model) else None


def parts(model: PreTrainedModel) -> tuple[nn.Module, nn.Module, nn.Module | None]:
    """The model below what peft has wrapped, its body and its head, as they are now."""
    whole = getattr(model, "get_base_model", lambda: model)()
    return whole, whole.base_model, whole.get_output_embeddings()


def form(model: PreTrainedModel) -> tuple:
    """What a model computes with, whatever the values of its weights."""
    return (
        attention_of(model),
        model.dtype,
        model.device,
        model.training,
        *(part and ref(part) for part in parts(model)),
    )
