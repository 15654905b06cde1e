"""The decoding library under the names of BeamSD's release: its functions take what they took and return what they
returned, and are the searches of the package `beamsd`.

As there, all `beam_size` beams are returned. Unlike there, a batch may hold several prompts, of any lengths, and EOS
ends a sequence, as in `generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel

import beamsd
from beamsd import *  # noqa: F403
from beamsd import SpeculativeOutput

__all__ = [*beamsd.__all__, "BeamSDOutput"]


@dataclass
class BeamSDOutput(SpeculativeOutput):
    """What `generate` returns and what it cost, also under the names of BeamSD's release: `outputs["beam_sequences"]`.

    Counts are sums over the batch. Seconds are None unless timed.
    """

    beam_sequences: Tensor | None = None  # (B * beam_size, P + longest answer), as `sequences`
    beam_scores: Tensor | None = None  # (B * beam_size,), as `log_probs`
    n_run: int | None = None  # forwards of the target
    total_accept_steps: int | None = None  # drafted levels that were accepted
    total_accept_tokens: int | None = None  # the same times beam_size
    ave_accept_steps: float | None = None  # a forward of the target
    ave_accept_tokens: float | None = None
    time_cost: float | None = None  # seconds in all
    draft_time_cost: float | None = None
    target_time_cost: float | None = None
    verify_time_cost: float | None = None


def beam_search_by_TreeAttn(  # type: ignore[no-redef]  # in the place of beamsd's
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    max_new_tokens: int | None = None,
    beam_size: int | None = None,
    logits_processor: LogitsProcessorList | None = None,
    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
    **options: Any,
) -> BeamSDOutput:
    """Beam search with tree attention and no draft. inputs: what a tokenizer returns.

    What is left out comes from `model.generation_config`; options: as of `beamsd.beam_search_by_TreeAttn`.
    """
    options |= _given(
        num_beams=beam_size, max_new_tokens=max_new_tokens, logits_processor=logits_processor,
        prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
    )  # fmt: skip
    K = _return_all(model, options)
    return _named(beamsd.beam_search_by_TreeAttn(model, inputs, **options), K)


def beam_search_by_SD(  # type: ignore[no-redef]
    target_model: PreTrainedModel,
    draft_model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    max_new_tokens: int | None = None,
    gamma: int | None = None,
    beam_size: int | None = None,
    draft_beam_size: int | None = None,
    logits_processor: LogitsProcessorList | None = None,
    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
    **options: Any,
) -> BeamSDOutput:
    """Speculative beam search. inputs: what a tokenizer returns.

    What is left out comes from the generation configs: the target's num_beams and max_new_tokens; the draft's num_beams
    is draft_beam_size, its max_new_tokens is gamma. options: as of `beamsd.beam_search_by_SD`.
    """
    options |= _given(
        max_new_tokens=max_new_tokens, gamma=gamma, num_beams=beam_size, draft_width=draft_beam_size,
        logits_processor=logits_processor, prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
    )  # fmt: skip
    K = _return_all(target_model, options)
    return _named(beamsd.beam_search_by_SD(target_model, draft_model, inputs, **options), K)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _return_all(model: PreTrainedModel, options: dict[str, Any]) -> int:
    """Ask for all beams unless the options say how many; returns K, the beams of a prompt."""
    K = options.get("num_beams") or model.generation_config.num_beams or 1
    options.setdefault("num_return_sequences", K)
    return K


def _named(output: SpeculativeOutput, K: int) -> BeamSDOutput:
    assert output.target_calls is not None
    assert output.accepted is not None
    n_run, accepted = int(output.target_calls.sum()), int(output.accepted.clamp(min=0).sum())
    return BeamSDOutput(
        **output, beam_sequences=output.sequences, beam_scores=output.log_probs, n_run=n_run,
        total_accept_steps=accepted, total_accept_tokens=accepted * K, ave_accept_steps=accepted / n_run,
        ave_accept_tokens=accepted * K / n_run,
    )  # fmt: skip
