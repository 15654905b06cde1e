import pytest
import torch

from specgr.decoding.prefixes import Prefixes, TigerBeams


def test_prefixes_advance_as_the_trie_does(codes):
    prefixes = Prefixes.of(codes)
    states = torch.arange(prefixes.trie.dead + 1).repeat_interleave(codes.vocabulary_size)
    tokens = torch.arange(codes.vocabulary_size).repeat(prefixes.trie.dead + 1)
    expected = prefixes.trie.advance(states, tokens)
    assert torch.equal(prefixes.advance(states, tokens), expected)
    assert (expected != prefixes.trie.dead).sum() == len(prefixes.keys) == prefixes.trie.end - 1


def test_below_a_prefix_are_the_items_that_begin_with_it(codes):
    prefixes, tokens = Prefixes.of(codes), codes.tokens.tolist()
    for depth in range(codes.levels + 1):
        held = prefixes.states[depth][torch.tensor([[0, 5], [7, 7]])]
        held = torch.cat([held, torch.full((2, 1), prefixes.trie.dead)], 1)
        for row, items in enumerate([(0, 5), (7, 7)]):
            begin = {tuple(tokens[item][:depth]) for item in items}
            expected = [tuple(item[:depth]) in begin for item in tokens]
            assert (prefixes.below(held, depth)[row] == 0).tolist() == expected


@pytest.mark.parametrize("width", [1, 4, 30, 10_000])
def test_beams_grow_by_the_best_of_all_continuations(codes, width):
    prefixes = Prefixes.of(codes)
    beams = TigerBeams.start(3, torch.device("cpu"))
    for parents in (1, min(7, width)):
        beams = TigerBeams(*(getattr(beams, name)[:, :parents] for name in ("tokens", "states", "log_probs", "path")))
        log_probs = torch.randn(3, beams.states.shape[1], codes.vocabulary_size)
        total = log_probs + beams.log_probs.sum(-1, keepdim=True)
        grown = beams.advance(log_probs, width, prefixes)
        best = total.flatten(1).sort(descending=True)
        indices = best.indices[:, :width]
        assert torch.equal(grown.tokens[..., -1], indices % codes.vocabulary_size)
        torch.testing.assert_close(grown.log_probs.sum(-1), best.values[:, :width])
        beams = TigerBeams(grown.tokens, grown.states, grown.log_probs, grown.tokens)  # no decoder has read them
