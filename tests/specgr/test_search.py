from dataclasses import replace

import pytest
import torch

from specgr.data.codes import NOTHING
from specgr.decoding.prefixes import Prefixes
from specgr.decoding.tiger_search import BeamSearch
from specgr.decoding.verifier import TigerVerifier
from tiny_tiger import random_histories


def search(codes, tiger, constrained):
    return BeamSearch(TigerVerifier(tiger, codes), Prefixes.of(codes), constrained)


def test_the_plain_search_is_that_of_transformers(codes, tiger):
    histories, width = random_histories(len(codes.codes), 6), 9
    ids, mask = codes.history(histories)
    expected = tiger.t5.generate(
        input_ids=ids, attention_mask=mask, num_beams=width, num_return_sequences=width, do_sample=False,
        max_new_tokens=codes.levels, length_penalty=0.0, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    with torch.inference_mode():
        found = search(codes, tiger, constrained=False).search(histories, width)
    assert torch.equal(found.sequences, expected.sequences[:, 1:].unflatten(0, (6, width)))
    torch.testing.assert_close(found.scores.flatten(), expected.sequences_scores, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def every_item(codes, tiger, histories):
    """The log-probability of every item (B, n_items)."""
    ids, mask = codes.history(histories)
    tokens = codes.tokens.expand(len(ids), -1, -1)
    log_probs = tiger.logits(tiger.encode(ids, mask), mask, tokens).log_softmax(-1)
    return log_probs.gather(-1, tokens[..., None]).sum((-1, -2))


def test_a_constrained_search_that_drops_nothing_ranks_the_whole_catalogue(codes, tiger):
    n_items = len(codes.codes)
    histories = random_histories(n_items, 4)
    lists = search(codes, tiger, constrained=True).recommend(histories, n_items)
    expected = every_item(codes, tiger, histories).sort(descending=True)
    assert torch.equal(lists.items, expected.indices)
    torch.testing.assert_close(lists.scores, expected.values, atol=1e-4, rtol=1e-4)


def test_a_plain_search_lists_the_items_among_its_beams_and_a_constrained_one_items_alone(codes, tiger):
    histories, k = random_histories(len(codes.codes), 4), 20
    plain, constrained = (search(codes, tiger, c).recommend(histories, k) for c in (False, True))
    assert (plain.items == NOTHING).any()
    assert (constrained.items != NOTHING).all()
    scores = every_item(codes, tiger, histories)
    for lists in (plain, constrained):
        for row in range(4):
            found = lists.items[row][lists.items[row] != NOTHING]
            assert len(found.unique()) == len(found)
            torch.testing.assert_close(lists.scores[row, : len(found)], scores[row, found], atol=1e-4, rtol=1e-4)
            assert lists.scores[row].isneginf().tolist() == (lists.items[row] == NOTHING).tolist()
    assert len(search(codes, tiger, True).recommend(histories, 1000).items[0].unique()) == len(codes.codes) + 1


@pytest.mark.parametrize("k", [5, 30, 70])
def test_drafting_by_the_trie_gives_the_same_lists(codes, tiger, k):
    histories, plain = random_histories(len(codes.codes), 6), search(codes, tiger, constrained=True)
    expected, lists = plain.recommend(histories, k), replace(plain, drafter="trie").recommend(histories, k)
    assert torch.equal(lists.items, expected.items)
    torch.testing.assert_close(lists.scores, expected.scores, atol=1e-4, rtol=1e-4)
