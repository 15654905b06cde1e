import torch

from specgr.beams import Prefixes


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
            assert prefixes.below(held, depth)[row].tolist() == expected
