"""Whoever drafts, the list is the target's own; who drafts well saves calls."""

import pytest
import torch

from beamsd import Trie, beam_search
from conftest import (
    DRAFTERS,
    LENGTH,
    VOCABULARY,
    assert_same_lists,
    noisy_copy,
    random_items,
    random_prompts,
    tiny_llama,
)


@pytest.mark.parametrize("n_items", [3, 60, 400, 3000])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_list_is_that_of_plain_beam_search(drafter, n_items):
    """In catalogues of fewer items than beams, of lines below the second level, and of branches everywhere."""
    target, trie, (ids, mask) = tiny_llama(1, 2), Trie(random_items(n_items)), random_prompts(3, 9)
    expected = beam_search(target, ids, mask, trie=trie, width=6)
    for draft in (target, noisy_copy(target, 0.1), tiny_llama(7, 1)):
        result = beam_search(target, ids, mask, trie=trie, width=6, draft=draft, **DRAFTERS[drafter])
        assert_same_lists(result, expected)
        assert (result.target_calls <= LENGTH).all()


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("verification", ["strict", "sample"])
def test_items_of_any_length_end_with_eos(drafter, verification):
    target, (ids, mask) = tiny_llama(1, 2), random_prompts(3, 9)
    generator = torch.Generator().manual_seed(0)
    items = random_items(100)
    lengths = torch.randint(1, LENGTH + 1, (len(items),), generator=generator)
    trie = Trie.from_sequences([item[:length] for item, length in zip(items, lengths, strict=True)])
    options = {"trie": trie, "width": 6, "eos_token_id": 2, "verification": verification, "seeds": [1, 2, 3]}
    expected = beam_search(target, ids, mask, **options)
    result = beam_search(target, ids, mask, draft=noisy_copy(target, 0.1), **options, **DRAFTERS[drafter])
    assert_same_lists(result, expected)


def test_the_trie_needs_one_call_a_two_levels_and_no_model():
    """All first tokens settle two levels, all continuations of the beams the other two."""
    trie, (ids, mask) = Trie(random_items(400)), random_prompts(4, 9)
    assert (trie.below(torch.tensor(0), 2) == torch.tensor([8, 63])).all()
    result = beam_search(tiny_llama(1, 2), ids, mask, trie=trie, width=6, drafter="trie", nodes=63)
    assert result.accepted.tolist() == [[1, 1]] * 4


def test_a_trie_that_fits_is_verified_in_one_call():
    trie, (ids, mask) = Trie(random_items(20)), random_prompts(2, 9)
    result = beam_search(tiny_llama(1, 2), ids, mask, trie=trie, width=6, drafter="trie")
    assert result.accepted.tolist() == [[LENGTH - 1]] * 2


def test_a_hybrid_whose_draft_is_right_about_two_levels_needs_one_call():
    target, trie, (ids, mask) = tiny_llama(1, 2), Trie(random_items(400)), random_prompts(3, 9)
    forwards = []
    draft = noisy_copy(target, 0)
    draft.model.register_forward_hook(lambda *_: forwards.append(1))
    options = {"trie": trie, "width": 5, "draft": draft, "drafter": "hybrid", "draft_width": (5, 5)}
    options["constrained_softmax"] = False  # the draft is the target, illegal tokens and all
    beam_search(target, ids, mask, **options)  # also the first look at the draft
    forwards.clear()
    result = beam_search(target, ids, mask, **options)
    assert result.accepted.tolist() == [[LENGTH - 1]] * 3
    assert len(forwards) == 1


def test_what_lies_below_is_counted():
    items = random_items(300)
    trie = Trie(items)
    states = trie.walk(items[:20])  # (20, L + 1)
    for depth in range(LENGTH):
        counts = trie.below(states[:, depth], LENGTH - depth)
        for item, count in zip(items[:20].tolist(), counts.T.tolist(), strict=True):
            under = [tuple(other) for other in items.tolist() if other[:depth] == item[:depth]]
            assert count == [len({other[: depth + d] for other in under}) for d in range(1, LENGTH - depth + 1)]
    assert (trie.below(torch.tensor([trie.dead, trie.end]), 3) == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drafter": "oracle"}, "drafter must be one of"),
        ({"trie": None, "max_new_tokens": 4}, "takes a trie"),
        ({"trie": None, "max_new_tokens": 4, "drafter": "hybrid"}, "takes a trie"),
        ({"verification": "relaxed", "seeds": [1]}, "another verification than 'relaxed'"),
        ({"drafter": "hybrid", "draft": None}, "drafter='hybrid' needs a draft model"),
        ({"drafter": "hybrid", "draft_width": (4, 9)}, "below width=5"),
        ({"nodes": 4}, "nodes=4 is below width=5"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    target = tiny_llama(1, 1)
    options = {"trie": Trie(random_items(9)), "width": 5, "draft": target, "drafter": "trie"}
    with pytest.raises(ValueError, match=message):
        beam_search(target, torch.tensor([[5, 6, 7]]), **(options | change))


@torch.inference_mode()
def test_what_a_draft_thinks_of_illegal_tokens_does_not_spoil_its_ranking():
    """The draft is the target, but for the logits of tokens that no item has."""
    items, target = random_items(200), tiny_llama(1, 2)
    draft, (ids, mask) = noisy_copy(target, 0.0), random_prompts(3, 9)
    illegal = sorted(set(range(VOCABULARY)) - set(items.flatten().tolist()))
    target.lm_head.weight[illegal], draft.lm_head.weight[illegal] = 0, 8 * draft.lm_head.weight[illegal]
    options = {"trie": Trie(items), "width": 5, "draft": draft, "draft_width": 8, "gamma": 3}
    plain, ranked = (
        beam_search(target, ids, mask, **options, constrained_softmax=constrained) for constrained in (False, True)
    )
    assert_same_lists(ranked, plain)
    assert ranked.target_calls.sum() < plain.target_calls.sum()
