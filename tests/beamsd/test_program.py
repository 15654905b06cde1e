"""Captured rounds give what uncaptured ones give, request after request, in the same buffers."""

import pytest
import torch

from beamsd import Program, Trie, beam_search
from beamsd.search.state import SearchState
from conftest import DRAFTERS, PROGRAMS, Tape, assert_same_lists, noisy_copy, random_items, random_prompts, tiny_llama


def uneven_items():
    """Half of the first tokens have 64 continuations of two tokens, the others 8, so that levels differ in width."""
    items = random_items(4096 * 3)
    return items[(items[:, 0] % 2 == 0) | (items[:, 2] == 20)]


SEARCHES = DRAFTERS | {"none": {}, "model": {"gamma": 2, "draft_width": 9}}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("verification", ["strict", "sample"])
@pytest.mark.parametrize("search", SEARCHES)
@torch.inference_mode()
def test_captured_rounds_give_what_others_give(search, verification, program):
    """The second request takes the recordings of the first where its rounds take the same path."""
    target, trie, program = tiny_llama(1, 2), Trie(uneven_items()), PROGRAMS[program]()
    options = {"trie": trie, "width": 6, "draft": noisy_copy(target, 0.1), "verification": verification}
    for seed, length in enumerate([9, 11, 9, 40, 5, 6]):
        ids, mask = random_prompts(3, length, seed)
        options["seeds"] = [seed, seed + 1, 7]
        captured = beam_search(target, ids, mask, program=program, **options, **SEARCHES[search])
        assert_same_lists(captured, beam_search(target, ids, mask, **options))
        rows = captured.sequences.tolist()
        assert all(len({tuple(s) for s in row}) == 6 for row in rows), "beams should differ from one another"


def test_a_path_is_recorded_once():
    target, trie, program = tiny_llama(1, 2), Trie(random_items(200)), Program(recorder=Tape)
    before = Tape.made
    for seed in range(4):
        ids, mask = random_prompts(2, 9, seed)
        beam_search(target, ids, mask, trie=trie, width=6, program=program)
    assert Tape.made == before + 1 + 4, "the prompt, and four rounds"


def test_levels_of_other_widths_are_recorded_apart():
    target, trie, program = tiny_llama(1, 2), Trie(uneven_items()), Program(recorder=Tape)
    before, widths = Tape.made, set()
    for seed in range(12):
        ids, mask = random_prompts(1, 9, seed)
        captured = beam_search(target, ids, mask, trie=trie, width=6, program=program, drafter="trie", nodes=70)
        assert_same_lists(captured, beam_search(target, ids, mask, trie=trie, width=6))
        widths.add(captured.target_tokens)
    assert Tape.made == before + 2 + len(widths) > before + 3, "the prompt and the first round, and every other second"


@pytest.mark.parametrize("eos", [None, 2])
@torch.inference_mode()
def test_captured_free_text(eos):
    target, program = tiny_llama(1, 2), Program(recorder=Tape)
    options = {"width": 4, "max_new_tokens": 7, "eos_token_id": eos, "gamma": 2, "draft": noisy_copy(target, 0.1)}
    for seed in range(3):
        ids, mask = random_prompts(2, 9, seed)
        captured = beam_search(target, ids, mask, program=program, **options)
        assert_same_lists(captured, beam_search(target, ids, mask, **options))


def test_relaxed_draws_the_same_when_captured():
    target, trie, program = tiny_llama(1, 2), Trie(random_items(200)), Program(recorder=Tape)
    options = {"trie": trie, "width": 4, "verification": "relaxed", "gamma": 3, "draft": noisy_copy(target, 0.1)}
    for seed in range(3):
        ids, mask = random_prompts(2, 9, seed)
        captured = beam_search(target, ids, mask, program=program, seeds=[seed, 9], **options)
        assert torch.equal(captured.sequences, beam_search(target, ids, mask, seeds=[seed, 9], **options).sequences)


def test_what_cannot_be_captured_is_refused():
    with pytest.raises(ValueError, match="answers of at most 16 tokens"):
        beam_search(tiny_llama(1, 1), torch.tensor([[5, 6]]), width=2, max_new_tokens=17, program=Program())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("search", SEARCHES)
def test_cuda_graphs_give_what_others_give_and_wait_once_a_round(search, monkeypatch):
    step = SearchState.step

    def watched(*arguments):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(SearchState, "step", watched)
    target, trie, program = tiny_llama(1, 2).cuda(), Trie(uneven_items().cuda()), Program()
    options = {"trie": trie, "width": 6, "draft": noisy_copy(target, 0.1)}
    for seed, length in enumerate([9, 11, 9, 40, 5, 6]):
        ids, mask = (each.cuda() for each in random_prompts(3, length, seed))
        captured = beam_search(target, ids, mask, program=program, **options, **SEARCHES[search])
        assert_same_lists(captured, beam_search(target, ids, mask, **options))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@torch.inference_mode()
def test_compiled_models_give_what_others_give():
    target, trie, program = tiny_llama(1, 2), Trie(random_items(200)), Program()
    options = {"trie": trie, "width": 6, "draft": noisy_copy(target, 0.1)}
    for search in (SEARCHES["none"], SEARCHES["hybrid"]):
        for seed, length in enumerate([9, 11, 40]):
            ids, mask = random_prompts(3, length, seed)
            captured = beam_search(target, ids, mask, program=program, **options, **search)
            assert_same_lists(captured, beam_search(target, ids, mask, **options))
