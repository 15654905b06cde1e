"""Collaborative vectors: counts and information worked by hand."""

import math

import numpy as np
import pytest
import torch

from genrec.identifiers.collaborative import WINDOW, collaborative_vectors, positive_information, together


def test_counts_and_information_worked_by_hand():
    counts = together({0: [0, 1, 2], 5: [1, 0], 7: [3], 8: [0, *[4] * WINDOW, 1]}, 5).to_dense()
    assert counts[0, 1] == 2, "once in a sequence, once in another; the pair farther apart than the window is none"
    assert counts[0, 2] == pytest.approx(2**-0.5)
    assert counts[3].sum() == 0
    assert torch.equal(counts, counts.T)
    few = torch.tensor([[0.0, 3, 1], [3, 0, 0], [1, 0, 4]])
    information = positive_information(few.to_sparse()).to_dense()
    assert information[0, 1] == pytest.approx(math.log(3 * 12 / (4 * 3)))
    assert information[0, 2] == 0, "less often than by chance: log(12 / (4 * 5)) < 0"
    assert information[2, 2] == pytest.approx(math.log(4 * 12 / (5 * 5)))


def test_items_of_the_same_people_lie_close_and_an_item_of_nobody_is_nothing():
    rng = np.random.default_rng(0)
    train = {user: (rng.permutation(10) + 10 * (user % 2)).tolist() for user in range(40)} | {99: [20]}
    found = collaborative_vectors(train, 21, 4)
    assert found.shape == (21, 4)
    assert torch.allclose(found[:20].norm(dim=-1), torch.ones(20))
    assert found[20].tolist() == [0] * 4
    close = found @ found.T
    assert close[:10, :10].mean() > 0.5 + close[:10, 10:20].mean()
    assert torch.equal(found, collaborative_vectors(train, 21, 4)), "the same again"


def test_more_numbers_than_there_is_to_know_are_zeros_and_no_noise():
    rng = np.random.default_rng(0)
    train = {user: (rng.permutation(10) + 10 * (user % 2)).tolist() for user in range(40)}
    rank = int(torch.linalg.matrix_rank(positive_information(together(train, 40)).to_dense()))
    found = collaborative_vectors(train, 40, 30)
    assert rank <= 20
    assert found[20:].abs().sum() == 0, "nobody chose these"
    assert (found.abs().amax(0) > 0).sum() == rank
