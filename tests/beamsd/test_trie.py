"""The trie against a dictionary of prefixes."""

import pytest
import torch

from beamsd import Trie
from conftest import LENGTH, random_items


def test_hand_worked_arrays():
    trie = Trie.from_items(torch.tensor([[7, 1], [3, 2], [3, 1], [3, 2]]))
    # root 0; 3 -> 1, 7 -> 2; under 3: 1 -> 3, 2 -> 4; under 7: 1 -> 5; dead 6
    assert trie.tokens.tolist() == [0, 3, 7, 1, 2, 1, 0]
    assert trie.first_child.tolist() == [1, 3, 5, 6, 6, 6, 6, 6]
    assert (trie.length, trie.fanout, trie.dead, trie.vocabulary_size) == (2, 2, 6, 8)
    assert trie.children(torch.tensor([0, 2, 6])).tolist() == [[1, 2], [5, 6], [6, 6]]
    assert trie.walk(torch.tensor([[3, 2], [7, 2], [0, 1]])).tolist() == [[0, 1, 4], [0, 2, 6], [0, 6, 6]]


@pytest.mark.parametrize("n_items", [1, 50, 500])
def test_children_are_exactly_the_legal_tokens(n_items):
    items = random_items(n_items)
    trie = Trie.from_items(items[torch.randperm(len(items))])
    legal = {}
    for item in items.tolist():
        for depth in range(LENGTH):
            legal.setdefault(tuple(item[:depth]), set()).add(item[depth])
    states = trie.walk(items)
    assert len(states.unique()) == len(legal) + len(items) == trie.dead
    for item, path in zip(items.tolist(), states.tolist(), strict=True):
        for depth in range(LENGTH):
            children = trie.children(torch.tensor(path[depth]))
            tokens = trie.tokens[children[children != trie.dead]].tolist()
            assert tokens == sorted(legal[tuple(item[:depth])])
    assert (trie.children(states[:, -1]) == trie.dead).all()


@pytest.mark.parametrize("items", [torch.empty(0, 4), torch.tensor([1, 2]), torch.tensor([[1, -2]])])
def test_bad_items_are_refused(items):
    with pytest.raises(ValueError, match="trie needs"):
        Trie.from_items(items)
