"""Sequences that are not legal for one request of a batch: what is found is what a trie without them gives."""

import pytest
import torch

from against_generate import children_of
from beamsd import Program, Trie, beam_search
from conftest import noisy_copy, random_items, random_prompts, tiny_llama

ITEMS = random_items(120)


def unique(items):
    return items.unique(dim=0)


def asked(n_rows, seed=0):
    """Of each row: the sequences that it must not be given. None, some, a whole first code, and all but three."""
    items, generator = unique(ITEMS), torch.Generator().manual_seed(seed)
    kinds = [
        items[:0], items[torch.randperm(len(items), generator=generator)[:40]], items[items[:, 0] == items[0, 0]],
        items[torch.randperm(len(items), generator=generator)[3:]],
    ]  # fmt: skip
    return [kinds[row % len(kinds)] for row in range(n_rows)]


def blocked_of(trie, excluded):
    rows = torch.cat([torch.full((len(each),), row) for row, each in enumerate(excluded)])
    return trie.blocked(torch.cat(excluded), rows, len(excluded))


def remaining(excluded):
    gone = set(map(tuple, excluded.tolist()))
    return torch.tensor([item for item in unique(ITEMS).tolist() if tuple(item) not in gone])


def test_a_prefix_is_blocked_with_the_last_of_its_continuations():
    trie, excluded = Trie(ITEMS), asked(8, seed=3)
    blocked = blocked_of(trie, excluded)
    for row, each in enumerate(excluded):
        left = {tuple(item[:depth]) for item in remaining(each).tolist() for depth in range(trie.length + 1)}
        for item in unique(ITEMS).tolist():
            for depth, state in enumerate(trie.walk(torch.tensor(item)).tolist()):
                assert bool(blocked[row, state]) == (tuple(item[:depth]) not in left)
    assert not blocked[0].any()
    foreign = trie.blocked(torch.tensor([[1, 1, 1, 1]]), torch.tensor([0]), 2)
    assert not foreign.any(), "what the trie does not hold counts for nothing"
    assert trie.blocked(ITEMS, torch.ones(len(ITEMS), dtype=torch.long), 2)[1, 0], "all of them: the root too"
    with pytest.raises(ValueError, match="one length"):
        Trie.from_sequences([[1], [1, 2]]).blocked(torch.tensor([[1, 2]]), torch.tensor([0]), 1)


@pytest.mark.parametrize("drafter", ["none", "model", "trie", "hybrid"])
@pytest.mark.parametrize("verification", ["strict", "coupled", "sample", "relaxed"])
@pytest.mark.parametrize("width", [1, 5])
def test_a_row_is_searched_as_alone_under_a_trie_of_what_is_left(drafter, verification, width):
    if verification == "relaxed" and drafter in ("trie", "hybrid"):
        pytest.skip("refused")
    target, trie, excluded = tiny_llama(1, 2), Trie(ITEMS), asked(8)
    draft, (ids, mask) = noisy_copy(target, 0.05), random_prompts(8, 9)
    options = dict(drafter=drafter, width=width, draft=draft, draft_width=2 * width, gamma=2, verification=verification)
    seeds = None if verification == "strict" else range(8)
    found = beam_search(target, ids, mask, trie=trie, blocked=blocked_of(trie, excluded), seeds=seeds, **options)
    if verification in ("coupled", "sample", "relaxed"):  # their noise belongs to a trie's states: see what is legal
        for row, each in enumerate(excluded):
            legal = set(map(tuple, remaining(each).tolist()))
            given = [tuple(item) for item in found.sequences[row, : found.found[row]].tolist()]
            assert len(set(given)) == min(width, len(legal))
            assert legal.issuperset(given)
        return
    for row, each in enumerate(excluded):
        alone = beam_search(target, ids[row : row + 1], mask[row : row + 1], trie=Trie(remaining(each)), **options)
        assert torch.equal(found.sequences[row], alone.sequences[0])
        torch.testing.assert_close(found.scores[row], alone.scores[0], atol=1e-4, rtol=1e-4)
    assert found.found.tolist() == [min(width, len(remaining(each))) for each in excluded]


def test_lists_are_those_of_generate_with_other_tokens_allowed_for_each_row():
    target, trie, excluded = tiny_llama(1, 2), Trie(ITEMS), asked(3)
    ids, mask = random_prompts(3, 7)
    children = [children_of(remaining(each).tolist(), None) for each in excluded]
    expected = target.generate(
        input_ids=ids, attention_mask=mask, num_beams=5, num_return_sequences=5, max_new_tokens=trie.length,
        do_sample=False, length_penalty=0.0, early_stopping=False, pad_token_id=0, eos_token_id=None,
        prefix_allowed_tokens_fn=lambda row, sent: sorted(children[row].get(tuple(sent[ids.shape[1] :].tolist()), {0})),
    )  # fmt: skip
    found = beam_search(target, ids, mask, trie=trie, width=5, blocked=blocked_of(trie, excluded), drafter="trie")
    assert found.sequences.flatten(0, 1).tolist() == expected[:, ids.shape[1] :].tolist()


def test_a_program_is_not_made_of_what_belongs_to_one_batch():
    target, trie, (ids, mask) = tiny_llama(1, 1), Trie(ITEMS), random_prompts(4, 6)
    options = dict(trie=trie, width=3, drafter="none", blocked=blocked_of(trie, asked(4)))
    found = beam_search(target, ids, mask, program=Program(), **options)
    assert torch.equal(found.sequences, beam_search(target, ids, mask, **options).sequences)


@pytest.mark.parametrize(
    "change",
    [
        dict(trie=None, max_new_tokens=4), dict(blocked=torch.zeros(2, 3, dtype=torch.bool)),
        dict(blocked=torch.zeros(4, Trie(ITEMS).dead + 1)),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change):
    target, trie, (ids, mask) = tiny_llama(1, 1), Trie(ITEMS), random_prompts(4, 6)
    options = dict(trie=trie, width=3, drafter="none", blocked=blocked_of(trie, asked(4)))
    with pytest.raises(ValueError, match="blocked takes a trie"):
        beam_search(target, ids, mask, **(options | change))
