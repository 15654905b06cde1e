"""The tree, worked by hand."""

import torch

from beamsd import Tree


def test_hand_worked_tree():
    tree = Tree.trunk(torch.tensor([[0, 5, 6]]), torch.tensor([[0, 1, 1]]), capacity=8)
    first = tree.append(torch.tensor([[2, 2]]), torch.tensor([[7, 8]]))
    second = tree.append(first.flip(-1), torch.tensor([[9, 10]]))  # 9 under 8, 10 under 7
    assert (first.tolist(), second.tolist(), tree.size) == ([[3, 4]], [[5, 6]], 7)
    visible = [
        "1.......",  # padding sees itself
        ".1......",
        ".11.....",
        ".111....",
        ".11.1...",
        ".11.11..",
        ".111..1.",
        "........",
    ]
    assert tree.visible[0].tolist() == [[cell == "1" for cell in row] for row in visible]
    assert tree.positions().tolist() == [[0, 0, 1, 2, 2, 3, 3]]
    mask = tree.additive_mask(5, 7, torch.float32)
    assert mask.shape == (1, 1, 2, 7)
    assert torch.equal(mask[0, 0] == 0, tree.visible[0, 5:7, :7])


def test_hand_worked_keep():
    """Row 0 drops the dead node 3; row 1, with one live node fewer, keeps a dead one in front."""
    tree = Tree.trunk(torch.tensor([[5, 6], [0, 6]]), torch.tensor([[1, 1], [0, 1]]), capacity=6)
    first = tree.append(torch.tensor([[1, 1], [1, 1]]), torch.tensor([[7, 8], [7, 8]]))
    last = tree.append(first[:, 1:], torch.tensor([[9], [9]]))
    live = tree.live(last, below=4)
    assert live.tolist() == [[True, True, False, True], [False, True, False, True]]
    kept, now = tree.keep(torch.tensor([[0, 1, 3, 4], [2, 1, 3, 4]]), capacity=5)
    assert kept.tokens[:, :4].tolist() == [[5, 6, 8, 9], [7, 6, 8, 9]]
    assert kept.parents[:, 1:4].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert now.gather(1, last).tolist() == [[3], [3]]
    assert kept.positions().tolist() == [[0, 1, 2, 3], [1, 0, 1, 2]]
    assert (kept.size, kept.capacity) == (4, 5)
