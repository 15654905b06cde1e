import pytest
import torch

from beamsd.search.beams import Beams
from specgr.decoding.prefixes import Prefixes
from specgr.decoding.specgr_search import advance


def test_below_a_prefix_are_the_items_that_begin_with_it(codes):
    prefixes, tokens = Prefixes.of(codes), codes.tokens.tolist()
    for depth in range(codes.levels + 1):
        held = prefixes.states[depth][torch.tensor([[0, 5], [7, 7]])]
        held = torch.cat([held, torch.full((2, 1), prefixes.trie.dead)], 1)
        for row, items in enumerate([(0, 5), (7, 7)]):
            begin = {tuple(tokens[item][:depth]) for item in items}
            expected = [tuple(item[:depth]) in begin for item in tokens]
            assert prefixes.below(held, depth)[row].tolist() == expected


@pytest.mark.parametrize("width", [1, 4, 30, 10_000])
def test_beams_grow_by_the_best_of_all_continuations(codes, tiger, width):
    trie = Prefixes.of(codes).trie
    beams = Beams.at_root(tiger.root(3, 1), 1, codes.levels, invalid_score=-torch.inf)
    for parents in (1, min(7, width)):
        beams = beams.take(torch.arange(parents).expand(3, -1))
        following = torch.randn(3, parents, codes.vocabulary_size)
        grown = advance(beams, following, width, trie)
        best = (beams.log_probs[..., None] + following).flatten(1).sort(descending=True)
        indices = best.indices[:, :width]
        assert torch.equal(grown.tokens, indices % codes.vocabulary_size)
        torch.testing.assert_close(grown.log_probs, best.values[:, :width])
        assert torch.equal(grown.states, trie.walk(grown.sequences[..., : grown.depths[0]])[..., -1])
        beams = grown
