"""Prompts and answers about as long as a model can read: equal to `generate`, or refused before any work."""

from copy import deepcopy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from beamsd import Prefix, Trie, beam_search, speculate
from conftest import COMMON, PROGRAMS, noisy_copy, random_items, random_prompts, tiny_llama, tiny_model
from tiny_types import tiny_of_type

ITEMS = random_items(200)
ANSWER = ITEMS.shape[1]


def outcome(model, prompt, batch=2, **how):
    """Whether the lists are those of `generate`, or what is said in their place."""
    children = {}
    for item in ITEMS.tolist():
        for depth, token in enumerate(item):
            children.setdefault(tuple(item[:depth]), set()).add(token)
    ids, mask = random_prompts(batch, prompt)
    request = dict(
        input_ids=ids, attention_mask=mask, num_beams=5, num_return_sequences=5, max_new_tokens=ANSWER, do_sample=False,
        eos_token_id=None, pad_token_id=0, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    try:
        output = model.generate(**request, custom_generate=speculate(trie=Trie(ITEMS), **how))
    except ValueError as error:
        return str(error)
    expected = model.generate(
        **request, prefix_allowed_tokens_fn=lambda _, s: sorted(children[tuple(s[prompt:].tolist())])
    )
    torch.testing.assert_close(output.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=1e-5)
    return torch.equal(output.sequences, expected.sequences)


HOWS = {
    "none": {"drafter": "none"}, "trie": {"drafter": "trie"}, "hybrid": {"drafter": "hybrid"}, "auto": {},
    "model": {"drafter": "model"},
}  # fmt: skip


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("architecture", ["gpt2", "opt", "gptj", "gpt_bigcode", "biogpt", "codegen"])
def test_positions_are_counted_before_work(architecture, how):
    """Beyond the table, this was an IndexError, on a GPU the end of the process."""
    model = tiny_of_type(architecture)
    decode = HOWS[how] | {"draft": noisy_copy(model, 0.1)}
    assert outcome(model, 64 - ANSWER + 1, **decode) is True
    said = outcome(model, 64 - ANSWER + 2, **decode)
    assert f"has 64 positions, a prompt of {64 - ANSWER + 2} tokens and an answer of 4 take 65" in said


def test_padding_for_captured_rounds_needs_no_positions():
    model = tiny_model("gpt2", n_positions=40)
    ids, mask = random_prompts(2, 37)
    options = {"trie": Trie(ITEMS), "width": 5, "drafter": "trie"}
    plain = beam_search(model, ids, mask, **options)
    for program in PROGRAMS.values():
        assert torch.equal(beam_search(model, ids, mask, **options, program=program()).sequences, plain.sequences)


def test_a_draft_with_too_few_positions_is_refused():
    draft = tiny_model("gpt2", n_positions=32)
    said = outcome(tiny_llama(1, 2), 40, draft=draft, drafter="model")
    assert "GPT2LMHeadModel has 32 positions" in said


ROPE = {"rope_theta": 10000.0, "factor": 4.0}
LONG = ROPE | {"rope_type": "longrope", "original_max_position_embeddings": 16}
LONG |= {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
ROTATIONS = {
    "phi3 longrope": (
        "phi3",
        {"rope_parameters": LONG, "max_position_embeddings": 64, "original_max_position_embeddings": 16},
    ),
    "llama longrope": ("llama", {"rope_parameters": LONG, "max_position_embeddings": 64}),
    "llama dynamic": ("llama", {"rope_parameters": ROPE | {"rope_type": "dynamic"}, "max_position_embeddings": 16}),
    "llama yarn": ("llama", {"rope_parameters": ROPE | {"rope_type": "yarn", "original_max_position_embeddings": 16}}),
    "llama linear": ("llama", {"rope_parameters": ROPE | {"rope_type": "linear"}, "max_position_embeddings": 16}),
}


def rotating(name, seed=0):
    architecture, changes = ROTATIONS[name]
    config = AutoConfig.for_model(architecture, **(COMMON | {"num_key_value_heads": 2} | deepcopy(changes)))
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("how", ["none", "trie", "model"])
@pytest.mark.parametrize("prompt", [12, 13, 14, 16, 17, 18])
@pytest.mark.parametrize("name", ROTATIONS)
def test_rotary_frequencies_that_change_with_the_length(name, prompt, how):
    """A tree reads tokens together, all with the frequencies of the longest path: other lists, near the limit."""
    model = rotating(name)
    got = outcome(model, prompt, batch=1, **HOWS[how], draft=noisy_copy(model, 0.1))
    if "longrope" in name and 14 <= prompt <= 16:
        assert "rotary frequencies (longrope) that change after 16 tokens" in got
    elif "dynamic" in name and prompt >= 13:
        assert "rotary frequencies (dynamic NTK) that change with every token from 16 on" in got
    else:
        assert got is True


def test_a_prefix_does_not_keep_the_frequencies_of_a_short_text():
    model, (ids, mask) = rotating("llama longrope"), random_prompts(1, 24)
    options = {"trie": Trie(ITEMS), "width": 5}
    short = beam_search(model, ids, mask, prefix=Prefix(ids[0, :8].tolist()), **options)
    torch.testing.assert_close(short.scores, beam_search(model, ids, mask, **options).scores, atol=1e-4, rtol=1e-5)


def test_big_bird_is_refused_when_the_tree_may_outgrow_it():
    model = tiny_of_type("big_bird")
    found = outcome(model, 20, draft=None, drafter="none")
    if "cannot read a token tree" in str(found):  # as by transformers 5.6, which has no masks of four dimensions there
        pytest.skip(found)
    assert found is True
    assert outcome(model, 20, draft=None, drafter="trie", nodes=30) is True
    assert "BigBirdForCausalLM reads at most 64 tokens at a time" in outcome(model, 20, draft=None, drafter="trie")
