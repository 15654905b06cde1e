"""The baselines, worked by hand and against a naive count."""

import random
from itertools import pairwise

import pytest

from genrec.evaluation.baselines import CoOccurrence, Popularity

ITEMS = range(8)
TRAIN = {0: [1, 2, 3], 1: [1, 2, 4], 2: [4, 2], 3: [5, 1, 4], 4: [6]}  # counts: 1, 2, 4 three times; 3, 5, 6 once


@pytest.mark.parametrize(("k", "expected"), [(1, [1]), (5, [1, 2, 4, 3, 5]), (9, [1, 2, 4, 3, 5, 6, 0, 7])])
def test_the_popular_come_first_and_ties_go_by_number(k, expected):
    assert Popularity(TRAIN, ITEMS).recommend([[3], [1, 2]], k) == [expected, expected]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([1], [2, 4, 1, 3, 5, 6, 0, 7]),  # 1 -> 2 twice, 1 -> 4 once; then by popularity
        ([2], [4, 3, 1, 2, 5, 6, 0, 7]),  # 2 -> 4 and 2 -> 3 once each: 4 is the more popular
        ([1, 5], [1, 2, 4, 3, 5, 6, 0, 7]),  # after 5 came 1; then what came after the item before it
        ([5, 1], [2, 4, 1, 3, 5, 6, 0, 7]),  # the last item counts first
        ([2, 6], [4, 3, 1, 2, 5, 6, 0, 7]),  # nothing ever came after 6
        ([7], [1, 2, 4, 3, 5, 6, 0, 7]),  # in no training sequence: popularity alone
    ],
)
def test_what_followed_the_last_item_comes_first(history, expected):
    model = CoOccurrence(TRAIN, ITEMS)
    assert model.recommend([history], 8) == [expected]
    assert model.recommend([history, [1]], 3) == [expected[:3], [2, 4, 1]]


def test_co_occurrence_equals_a_naive_count():
    rng = random.Random(0)
    for _ in range(20):
        train = {user: [rng.randrange(12) for _ in range(rng.randint(0, 8))] for user in range(15)}
        history = [rng.randrange(12) for _ in range(rng.randint(1, 4))]
        popular = {item: sum(h.count(item) for h in train.values()) for item in range(12)}

        def key(item, train=train, history=history, popular=popular):
            after = [
                sum((a, b) == (last, item) for h in train.values() for a, b in pairwise(h))
                for last in reversed(history)
            ]
            first = next((i for i, count in enumerate(after) if count), len(after))
            return first, -after[first] if first < len(after) else 0, -popular[item], item

        (ranked,) = CoOccurrence(train, range(12)).recommend([history], 12)
        assert ranked == sorted(range(12), key=key)
