"""A model in two parts, so that words are scored at the nodes that ask for it and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Parts:
    """`head(body(…).last_hidden_state)` are the model's logits."""

    body: Callable
    head: Callable[[Tensor], Tensor]


_parts: WeakKeyDictionary[PreTrainedModel, Parts | None] = WeakKeyDictionary()


def split(model: PreTrainedModel) -> Parts | None:
    """The parts of a model; None where its logits are more than its output embeddings of its last hidden state, as with
    soft caps or scales. Tried out, once a model, since no configuration tells."""
    if model not in _parts:
        _parts[model] = _tried(model)
    return _parts[model]


@torch.inference_mode()
def _tried(model: PreTrainedModel) -> Parts | None:
    whole = getattr(model, "get_base_model", lambda: model)()  # below what peft has wrapped
    body, head = whole.base_model, whole.get_output_embeddings()
    if body is whole or head is None or len(set(getattr(model, "hf_device_map", {"": 0}).values())) > 1:
        return None
    ids = torch.arange(1, 4, device=model.device)[None] % model.config.get_text_config().vocab_size
    seen = []

    def replaced(_: object, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """Says something else than the head would, large enough for a cap to show."""
        words = 50 * torch.arange(output.numel(), device=output.device).view_as(output).sin().to(output.dtype)
        seen.append((inputs[0], words))
        return words

    hook = head.register_forward_hook(replaced)
    try:
        logits = whole(input_ids=ids, use_cache=False, return_dict=True).logits
    finally:
        hook.remove()
    if len(seen) != 1 or not torch.equal(logits, seen[0][1]):
        return None
    states = body(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state
    return Parts(body, head) if states.shape == seen[0][0].shape and torch.allclose(states, seen[0][0]) else None
