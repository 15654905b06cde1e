"""Requests at random, anything that `generate` can be asked: ours gives what it gives."""

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from against_generate import INVALID_SCORE, assert_same, children_of
from beamsd import Trie, speculate
from conftest import ARCHITECTURES, VOCABULARY, noisy_copy, random_prompts, tiny_model
from tiny_types import EQUAL, tiny_of_type


class Wave(LogitsProcessor):
    """Holds a state: it would show any call too many."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        return scores + torch.cos(torch.arange(scores.shape[-1]) + self.calls + input_ids.sum(-1, keepdim=True)) / 2


class EndsWith(StoppingCriteria):
    def __init__(self, digit):
        self.digit = digit

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] % 7 == self.digit


@dataclass
class Case:
    architecture: str
    attention: str
    noise: float  # of the draft: 0 accepts always, 3 never
    prompts: tuple
    width: int
    draft_width: int
    gamma: int
    drafter: str
    flags: dict
    sequences: list | None  # the legal ones
    constraint: str  # "trie", "function" or "none"
    extra: str  # "processor", "criterion" or "none"

    def models(self):
        target = target_of(self.architecture, self.attention)
        return target, draft_of(self.architecture, self.attention, self.noise)

    def arguments(self, ours):
        """The arguments of `generate`, as they are and for ours."""
        (ids, mask), flags = self.prompts, dict(self.flags)
        eos = torch.as_tensor(flags["eos_token_id"]).view(-1)[0].item() if flags["eos_token_id"] is not None else None
        if self.constraint != "none" and not (ours and self.constraint == "trie"):
            children, prompt = children_of(self.sequences, eos), ids.shape[1]
            other = eos if eos is not None else 4

            def allowed(row, sequence):
                return sorted(children.get(tuple(sequence[prompt:].tolist()), {other}))

            flags["prefix_allowed_tokens_fn"] = allowed
        if self.extra == "processor":
            flags["logits_processor"] = LogitsProcessorList([Wave()])
        if self.extra == "criterion":
            flags["stopping_criteria"] = StoppingCriteriaList([EndsWith(3)])
        return dict(
            input_ids=ids, attention_mask=mask, num_beams=self.width, do_sample=False, return_dict_in_generate=True,
            output_scores=True, **flags,
        )  # fmt: skip


@cache
def target_of(architecture, attention):
    model = tiny_model(architecture) if architecture in ARCHITECTURES else tiny_of_type(architecture)
    with suppress(ValueError):  # Gemma-2 has eager alone
        model.set_attn_implementation(attention)
    return model


@cache
def draft_of(architecture, attention, noise):
    return noisy_copy(target_of(architecture, attention), noise)


@st.composite
def cases(draw, architectures):
    def pick(*values):
        return draw(st.sampled_from(values))

    architecture = pick(*architectures)
    width, tokens = pick(1, 2, 3, 5, 8, 20, 25, 50), draw(st.integers(1, 9))
    flags = {
        "max_new_tokens": tokens,
        "eos_token_id": pick(None, 2, [2, 5], [5, 6, 7, 8, 9]),
        "pad_token_id": pick(0, 1),
    }
    constraint, sequences = pick("none", "none", "trie", "function"), None
    if constraint != "none":
        length, fixed = draw(st.integers(1, 5)), draw(st.booleans())
        n, any_length = pick(1, 2, 3, 10, 56, 100, 300), st.integers(1, length)
        sequences = [
            draw(st.lists(st.integers(3, VOCABULARY - 1), min_size=m, max_size=m))
            for m in ([length] * n if fixed else draw(st.lists(any_length, min_size=n, max_size=n)))
        ]
        if flags["eos_token_id"] is None:
            if fixed:
                flags["max_new_tokens"] = min(tokens, length)
            else:
                flags["eos_token_id"] = 2
    if width > 1:
        flags["length_penalty"] = pick(0.0, 0.5, 1.0, 2.0, -1.0)
        flags["early_stopping"] = pick(True, False, "never")
    # With early_stopping, junk can end a search under a trie (docs/exactness.md); all of the list shows whether it did.
    whole = constraint == "trie" and flags.get("early_stopping") is True
    flags["num_return_sequences"] = width if whole else draw(st.integers(1, width))
    processed = False
    for name, values in {
        "min_new_tokens": (1, 3), "repetition_penalty": (1.3,), "no_repeat_ngram_size": (2,),
        "suppress_tokens": ([3, 4],), "bad_words_ids": ([[7], [9, 10]],),
    }.items():  # fmt: skip
        if draw(st.integers(0, 5)) == 0:
            flags[name], processed = pick(*values), True
    extra = pick("none", "none", "processor", "criterion")
    # One beam that ends without an EOS token is not ended by `generate` while others of the batch go on.
    assume(width > 1 or extra != "criterion" or flags["eos_token_id"] is not None)
    drafters = ["model", "model", "none", "auto"]
    if constraint == "trie" and not processed and extra != "processor":
        drafters += ["trie", "hybrid"] * 2
    return Case(
        architecture, pick("sdpa", "eager"), pick(0, 0.03, 0.1, 3), random_prompts(pick(1, 2, 4), pick(1, 4, 9)), width,
        min(width + pick(0, 4, 20), VOCABULARY * width), pick(0, 1, 2, 3, 6), pick(*drafters), flags, sequences,
        constraint, extra,
    )  # fmt: skip


def assert_equals_generate(case):
    target, draft = case.models()
    expected = target.generate(**case.arguments(ours=False))
    decode = speculate(
        draft, trie=Trie.from_sequences(case.sequences) if case.constraint == "trie" else None, drafter=case.drafter,
        draft_width=case.draft_width, gamma=case.gamma,
    )  # fmt: skip
    output = target.generate(**case.arguments(ours=True), custom_generate=decode)
    scores = expected.get("sequences_scores")
    if scores is not None:
        assume(not scores.isnan().any())
        if case.constraint == "trie" and case.flags["early_stopping"] is True:
            assume((scores > INVALID_SCORE).all())
    elif case.constraint != "none":
        assume(output.found.all())
    assert_same(expected, output, case.prompts[0].shape[1])


def requests(n):
    return settings(
        max_examples=int(os.environ.get("RANDOM_REQUESTS", n)), derandomize=True, deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )  # fmt: skip


pytestmark = pytest.mark.filterwarnings("ignore:Unfeasible length constraints")  # some cases ask for that


@given(cases(["llama", *ARCHITECTURES]))
@requests(2_000)
def test_equals_generate_whatever_it_is_asked(case):
    assert_equals_generate(case)


@pytest.mark.slow
@given(cases(sorted({*ARCHITECTURES, *EQUAL})))
@requests(10_000)
def test_ten_thousand_more_of_more_architectures(case):
    assert_equals_generate(case)
