"""A prefix that is read once changes what is read, and nothing that is found."""

import pytest
import torch

from beamsd import Prefix, Trie, beam_search, speculate
from conftest import (
    DRAFTERS,
    PROGRAMS,
    assert_same_lists,
    noisy_copy,
    random_items,
    random_prompts,
    tiny_llama,
    tiny_model,
)

SHARED = [3, 1, 4, 1, 5, 9]


def prompts(batch, length, seed=0):
    """Left-padded, each shorter than the one before, all beginning with `SHARED`."""
    ids, mask = random_prompts(batch, length, seed)
    mask = torch.cat([mask, torch.ones(batch, len(SHARED), dtype=torch.long)], 1)
    ids = torch.cat([torch.zeros(batch, len(SHARED), dtype=torch.long), ids], 1)
    for row, tokens in zip(ids, mask.sum(1).tolist(), strict=True):
        row[-tokens : len(row) - tokens + len(SHARED)] = torch.tensor(SHARED)
    return ids, mask


@pytest.mark.parametrize("program", [None, *PROGRAMS])
@pytest.mark.parametrize("verification", ["strict", "sample"])
@pytest.mark.parametrize("search", DRAFTERS)
@torch.inference_mode()
def test_the_lists_are_the_same_and_the_prefix_is_not_read(search, verification, program):
    target, prefix = tiny_llama(1, 2), Prefix(SHARED)
    program = program and PROGRAMS[program]()
    options = {"trie": Trie(random_items(200)), "width": 5, "draft": noisy_copy(target, 0.1), **DRAFTERS[search]}
    options["verification"] = verification
    for seed in range(3):
        ids, mask = prompts(3, 9, seed)
        if verification == "sample":
            options["seeds"] = [seed, 5, 7]
        whole = beam_search(target, ids, mask, **options)
        short = beam_search(target, ids, mask, **options, prefix=prefix, program=program)
        assert_same_lists(short, whole)
        if program is None:  # under a program levels are padded
            assert short.accepted.tolist() == whole.accepted.tolist()
            assert short.target_tokens == (whole.target_tokens[0] - len(SHARED), *whole.target_tokens[1:])
            assert whole.prompt_tokens - short.prompt_tokens == len(SHARED)
    assert target in prefix._kept._facts, "under a program too"


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "gemma", "qwen3"])
@torch.inference_mode()
def test_other_models_and_long_texts_go_on_from_it(architecture):
    """Long enough for the caches to be compacted, with the prefix in them."""
    model, (ids, mask) = tiny_model(architecture), prompts(2, 5)
    options = {"width": 3, "max_new_tokens": 24, "drafter": "none"}
    assert_same_lists(
        beam_search(model, ids, mask, **options, prefix=Prefix(SHARED)), beam_search(model, ids, mask, **options)
    )


@pytest.mark.parametrize("spoil", ["other", "short", "longer than all"])
@torch.inference_mode()
def test_a_batch_with_a_prompt_that_does_not_begin_with_it_is_read_whole(spoil):
    target, (ids, mask), prefix = tiny_llama(1, 2), prompts(2, 9), Prefix(SHARED)
    if spoil == "other":
        ids[1, (1 - mask[1]).sum()] = 2
    elif spoil == "short":  # a prompt that is the prefix: nothing would be left to read
        ids[1, -len(SHARED) :], mask[1] = torch.tensor(SHARED), torch.arange(ids.shape[1]) >= 9
    else:
        prefix = Prefix(SHARED * 9)
    options = {"trie": Trie(random_items(200)), "width": 5}
    whole, same = beam_search(target, ids, mask, **options), beam_search(target, ids, mask, **options, prefix=prefix)
    assert_same_lists(same, whole)
    assert same.target_tokens == whole.target_tokens


def test_generate_and_auto_take_it():
    target, (ids, mask) = tiny_llama(1, 2), prompts(2, 9)
    decode = speculate(noisy_copy(target, 0.1), trie=Trie(random_items(200)), prefix=Prefix(SHARED))
    options = {"input_ids": ids, "attention_mask": mask, "num_beams": 4, "max_new_tokens": 4, "do_sample": False}
    plain = speculate(None, trie=decode.trie, drafter="none")
    expected = target.generate(**options, custom_generate=plain)
    for _ in range(12):
        assert torch.equal(target.generate(**options, custom_generate=decode), expected)
    read = [f for ledgers in decode.auto._histories.values() for each in ledgers.values() for f in each.forwards]
    assert len(read) > 3
    assert min(f.target[0] for f in read) == 0  # plain beam search adds nothing to the prompt


@pytest.mark.parametrize(
    ("given", "shared"),
    [
        ([[1, 2, 3, 4], [1, 2, 5]], (1, 2)),
        ([[1, 2], [1, 2, 3]], (1,)),  # the last token of a prompt must be read
        ([[1, 2], [2, 2]], None),
        ([[7]], None),
    ],
)
def test_what_prompts_share_is_found(given, shared):
    prefix = Prefix.of(given)
    assert (prefix and prefix.tokens) == shared


def test_an_empty_prefix_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        Prefix([])
