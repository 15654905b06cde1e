"""Every causal type that transformers knows and that can be made tiny here: equal to `generate`, or refused by name."""

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from against_generate import children_of
from beamsd import Trie, speculate
from conftest import random_items, random_prompts
from tiny_types import EQUAL, tiny_of_type

# A token tree is not for them: they keep a state, take no positions, or attend to neighbours.
REFUSED = ("bloom", "rwkv", "bart")
OTHERS = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - {*EQUAL, *REFUSED})
PROMPT, K = 7, 4
ITEMS = random_items(60)


def requested():
    ids, mask = random_prompts(1, PROMPT)
    return dict(
        input_ids=ids, attention_mask=mask, num_beams=K, num_return_sequences=K, max_new_tokens=ITEMS.shape[1],
        do_sample=False, eos_token_id=None, pad_token_id=0, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip


def outcomes(model):
    """Asserts that lists are those of `generate`, with every drafter that takes the model; gives what refusals say."""
    children, refusals, request = children_of(ITEMS.tolist(), None), [], requested()
    for drafter in ("none", "trie"):
        try:
            output = model.generate(**request, custom_generate=speculate(None, trie=Trie(ITEMS), drafter=drafter))
        except ValueError as error:
            refusals.append(str(error))
            continue
        expected = model.generate(
            **request, prefix_allowed_tokens_fn=lambda _, tokens: sorted(children[tuple(tokens[PROMPT:].tolist())])
        )
        assert torch.equal(output.sequences, expected.sequences)
        torch.testing.assert_close(output.sequences_scores, expected.sequences_scores, atol=1e-3, rtol=1e-4)
    return refusals


@pytest.mark.parametrize("name", EQUAL)
def test_what_recommenders_are_made_of_is_equal(name):
    assert outcomes(tiny_of_type(name)) == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_read_a_tree_is_refused_by_name(name):
    if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        pytest.skip("not in this release of transformers")
    model = tiny_of_type(name)
    refusals = outcomes(model)
    assert len(refusals) == 2
    assert all(type(model).__name__ in refusal for refusal in refusals)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_type_is_equal_or_refused_by_name(name):
    try:
        with torch.device("meta"):
            size = tiny_of_type(name).num_parameters()
    except Exception as error:  # its configuration takes no such sizes, or it wants another package
        pytest.skip(f"cannot be made tiny: {type(error).__name__} {error}")
    if size > 1e7:
        pytest.skip(f"cannot be made tiny: {size:,} weights, whose sizes lie in a configuration of its own")
    model = tiny_of_type(name)
    try:
        model.generate(**requested())
    except Exception as error:
        pytest.skip(f"generate fails with these sizes: {type(error).__name__} {error}")
    assert all(type(model).__name__ in refusal for refusal in outcomes(model))
