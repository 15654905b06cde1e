"""Decoding without tree attention: the same lists, levels and draws, for more tokens read."""

import pytest
import torch

from beamsd import Prefix, Trie, beam_search
from conftest import ARCHITECTURES, noisy_copy, random_items, random_prompts, tiny_llama, tiny_model

WAYS = {
    "none": {}, "model": {"gamma": 3}, "one level": {"gamma": 1, "draft_width": 9}, "trie": {"drafter": "trie"},
    "hybrid": {"drafter": "hybrid"}, "relaxed": {"gamma": 2, "verification": "relaxed", "seeds": [3, 1, 2]},
    "without a trie": {"gamma": 3, "trie": None, "max_new_tokens": 5, "eos_token_id": [7, 9]},
}  # fmt: skip


def both(target, ids, mask, **settings):
    return (beam_search(target, ids, mask, tree_attention=each, **settings) for each in (True, False))


def assert_the_same(tree, paths):
    assert torch.equal(tree.sequences, paths.sequences)
    assert torch.equal(tree.accepted, paths.accepted)
    torch.testing.assert_close(tree.scores, paths.scores, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("padded", [True, False])
def test_the_same_lists_for_more_tokens(way, padded):
    target = tiny_llama(1, 2)
    ids, mask = random_prompts(3, 9)
    mask = mask if padded else torch.ones_like(mask)
    settings = {"trie": Trie(random_items(200)), "width": 5, "draft": noisy_copy(target, 0.1)} | WAYS[way]
    tree, paths = both(target, ids, mask, **settings)
    assert_the_same(tree, paths)
    assert sum(paths.target_tokens) >= sum(tree.target_tokens)
    if way == "model":  # what is drafted is read along with every path to it
        assert sum(paths.target_tokens) > 1.5 * sum(tree.target_tokens)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_other_models_read_paths_too(architecture):
    target = tiny_model(architecture)
    settings = {"trie": Trie(random_items(200)), "width": 5, "draft": noisy_copy(target, 0.1), "gamma": 2}
    assert_the_same(*both(target, *random_prompts(2, 9), **settings))


def test_after_a_prefix_and_over_so_many_rounds_that_caches_are_compacted():
    target = tiny_llama(1, 2)
    prompts = [[5, 6, 7, 8 + i, 9] for i in range(3)]
    ids = torch.tensor(prompts)
    settings = {"width": 3, "draft": noisy_copy(target, 0.3), "gamma": 2, "max_new_tokens": 40}
    tree, paths = both(target, ids, torch.ones_like(ids), prefix=Prefix.of(prompts), **settings)
    assert_the_same(tree, paths)
    assert len(tree.target_tokens) > 17, "rounds after which the tree is compacted"
