"""Speculative beam search: draft some levels, verify them in one target call, repeat. gamma = 0 is plain beam search.

There is one host sync a round: the number of levels left, and the counts that the drafter needs (see `drafters`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from beamsd.models.prefix import Prefix
from beamsd.models.support import is_long
from beamsd.search.beams import INVALID_SCORE, Beams
from beamsd.search.finished import Ending, Finished
from beamsd.search.plan import SearchPlan
from beamsd.search.settings import Settings
from beamsd.search.state import Decoding, DecodingFactory, Round, SearchState, SpanTimer, reader_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Result:
    """The K best sequences of every request, best first, and what they cost."""

    sequences: Tensor  # (B, K, T) long, token ids; 0 after the end, and throughout where there is no K-th sequence
    lengths: Tensor  # (B, K) long, tokens up to the end, EOS included; 0 where there is no K-th sequence
    scores: Tensor  # (B, K) float32, by which they are ranked; -inf where there is no K-th sequence
    log_probs: Tensor  # (B, K) float32, cumulative log-probability
    ranks: Tensor  # (B, K, T) long, which of the K beams of the step before every token continued; -1 after the end
    accepted: Tensor  # (B, R) long, drafted levels accepted in each round; -1 in rounds after the request was finished
    target_tokens: tuple[int, ...]  # read by each forward of the target, a row, the prompt included
    draft_tokens: tuple[int, ...]  # the same of the draft model
    prompt_tokens: int  # of the first forward of either, the prompt's, padding included, a `Prefix` not

    @property
    def target_calls(self) -> Tensor:
        """Target forwards (B,) that each request needed, the first over the prompt included."""
        return (self.accepted >= 0).sum(-1)

    @property
    def found(self) -> Tensor:
        """How many legal sequences (B,) each request got: K, or fewer if there are fewer."""
        return self.scores.isfinite().sum(-1)


def rounds(
    target: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    plan: SearchPlan,
    *,
    draft: PreTrainedModel | None = None,
    clock: SpanTimer | None = None,
    prefix: Prefix | None = None,
    program: DecodingFactory | None = None,
) -> Iterator[Round]:
    """Decode round by round. plan: from `Settings.plan`, for these very models and prompts. The tensors of a round are
    valid until the next, under a `program` until its next use."""
    yield from _play(_decoding(target, input_ids, attention_mask, plan, draft, clock, prefix, program))


@torch.inference_mode()
def decode(state: Decoding) -> Result:
    """Decode a batch to its end."""
    accepted = []
    for done in _play(state):
        accepted.append(done.accepted)
    return _result(done, state.plan.ending, torch.stack(accepted, -1))


def _play(state: Decoding) -> Iterator[Round]:
    outlook = state.begin()
    while True:
        left, *known = outlook.tolist()  # the only host sync of a round
        if not left:
            return
        outlook = state.step(left, known)
        yield state.round()


def _decoding(
    target: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, plan: SearchPlan,
    draft: PreTrainedModel | None, clock: SpanTimer | None, prefix: Prefix | None, program: DecodingFactory | None,
) -> Decoding:  # fmt: skip
    if prefix and is_long(target, plan.longest):
        prefix = None
    if prefix and (arranged := prefix.in_front(input_ids, attention_mask)):
        input_ids, attention_mask = arranged
    else:
        prefix = None
    if program and plan.is_recordable:
        return program.decoding(target, draft, plan, input_ids, attention_mask, clock, prefix)
    read, read_draft = (reader_of(model, plan, input_ids.shape[1], prefix) for model in (target, draft))
    return SearchState(plan, input_ids, attention_mask, read, read_draft, clock=clock, prefix_tokens=len(prefix or ()))


@torch.inference_mode()
def beam_search(
    target: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    draft: PreTrainedModel | None = None,
    clock: SpanTimer | None = None,
    prefix: Prefix | None = None,
    program: DecodingFactory | None = None,
    **settings: Any,
) -> Result:
    """The `width` best sequences for every prompt: under strict verification those of the target's own beam search.

    target, draft: decoder-only models with the same tokenizer, in eval mode, on the device of the prompts.
    input_ids: (B, P) long, left-padded. attention_mask: (B, P), 0 where padded; None if nothing is.
    clock: sums the seconds of draft, target and verify. prefix: what prompts begin with, to be read once for all calls;
    batches with a prompt that does not are read whole. program: a `Program`, for static shapes; `blocked`
    and tree_attention=False go without.
    settings: see `Settings`; `width` is required.

    Source: AtSpeed (ICLR 2025), Algorithms 1 and 2, with tree attention.
    Raises ValueError for arguments that do not fit together, before any work.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    plan = Settings(**settings).plan(target, draft, input_ids, attention_mask)
    with program.lock if program else nullcontext():
        return decode(_decoding(target, input_ids, attention_mask, plan, draft, clock, prefix, program))


def _result(last: Round, ending: Ending, accepted: Tensor) -> Result:
    beams: Beams | Finished
    if last.finished is None:
        best = last.beams.scores.argsort(descending=True, stable=True)  # relaxed sampling leaves them as drawn
        beams = running = last.beams.take(best)
        scores, legal = running.scores / ending.penalty(running.depths), ~running.illegal()
    else:
        beams = finished = last.finished
        scores, legal = finished.scores, finished.ended & (finished.log_probs > INVALID_SCORE / 2)
    ranks = beams.ranks.where(legal[..., None], -1)
    return Result(
        beams.sequences.where(ranks >= 0, 0), (ranks >= 0).sum(-1), scores.where(legal, -torch.inf),
        beams.log_probs.where(legal, -torch.inf), ranks, accepted, last.target_tokens, last.draft_tokens,
        last.prompt_tokens,
    )  # fmt: skip
