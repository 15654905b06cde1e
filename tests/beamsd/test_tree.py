"""The tree, worked by hand."""

import torch

from beamsd import Tree


def test_hand_worked_tree():
    tree = Tree.trunk(torch.tensor([[0, 5, 6]]), torch.tensor([[0, 1, 1]]), capacity=8)
    first = tree.grow(torch.tensor([[2, 2]]), torch.tensor([[7, 8]]))
    second = tree.grow(first.flip(-1), torch.tensor([[9, 10]]))  # 9 under 8, 10 under 7
    assert (first.tolist(), second.tolist(), tree.size) == ([[3, 4]], [[5, 6]], 7)
    sees = [
        "1.......",  # padding sees itself
        ".1......",
        ".11.....",
        ".111....",
        ".11.1...",
        ".11.11..",
        ".111..1.",
        "........",
    ]
    assert tree.sees[0].tolist() == [[cell == "1" for cell in row] for row in sees]
    assert tree.positions().tolist() == [[0, 0, 1, 2, 2, 3, 3]]
    assert tree.paths(second, 3).tolist() == [[[6, 8, 9], [6, 7, 10]]]
    mask = tree.additive_mask(5, 7, torch.float32)
    assert mask.shape == (1, 1, 2, 7)
    assert torch.equal(mask[0, 0] == 0, tree.sees[0, 5:7, :7])
