"""Recall and NDCG, worked by hand and against a naive loop."""

import math
import random

import pytest

from genrec.evaluation.metrics import ndcg, recall

SECOND, THIRD = 1 / math.log2(3), 1 / 2  # the gain of a hit at rank 2 and 3; at rank 1 it is 1


@pytest.mark.parametrize(
    ("ranked", "labels", "k", "expected_recall", "expected_ndcg"),
    [
        ([5, 6, 7], [5], 3, 1, 1),
        ([5, 6, 7], [7], 3, 1, THIRD),
        ([5, 6, 7], [7], 2, 0, 0),
        ([5, 6, 7], [8], 3, 0, 0),
        ([5, 6, 7], [6, 9], 3, 1 / 2, SECOND / (1 + SECOND)),
        ([5, 6, 7], [7, 5], 3, 1, (1 + THIRD) / (1 + SECOND)),
        ([5, 6, 7], [5, 8, 9, 10], 1, 1 / 4, 1),  # more labels than k: the best list has one hit
        ([5, 6, 7], [6, 8, 9, 10], 2, 1 / 4, SECOND / (1 + SECOND)),
        ([5, 6, 7], [6, 6, 6], 3, 1, SECOND),  # bought three times, one label
        ([5], [6, 5], 10, 1 / 2, 1 / (1 + SECOND)),  # fewer found than k
        ([], [6], 10, 0, 0),
    ],
)
def test_hand_worked(ranked, labels, k, expected_recall, expected_ndcg):
    assert recall(ranked, labels, k) == pytest.approx(expected_recall)
    assert ndcg(ranked, labels, k) == pytest.approx(expected_ndcg)


def test_equal_a_naive_loop():
    rng = random.Random(0)
    for _ in range(300):
        ranked, k = rng.sample(range(30), rng.randint(0, 20)), rng.randint(1, 25)
        labels = [rng.randrange(30) for _ in range(rng.randint(1, 12))]
        hits, gain, best = 0, 0.0, 0.0
        for label in range(30):
            if label in labels:
                for rank in range(1, k + 1):
                    if rank <= len(ranked) and ranked[rank - 1] == label:
                        hits += 1
                        gain += math.log(2) / math.log(rank + 1)
        for rank in range(1, k + 1):
            if rank <= len(set(labels)):
                best += math.log(2) / math.log(rank + 1)
        assert recall(ranked, labels, k) == pytest.approx(hits / len(set(labels)))
        assert ndcg(ranked, labels, k) == pytest.approx(gain / best)
