import math

import pytest
import torch

from genrec.data.dataset import Sample
from specgr.data.codes import NOTHING
from specgr.decoding.ranked_lists import RankedLists
from specgr.evaluation.evaluation import batches_of, evaluate


class LastPlusOne:
    """Recommends the items after the last one; the counts are those of two rounds with half accepted."""

    def __init__(self, speculative):
        self.speculative = speculative

    def recommend(self, histories, k):
        last = histories.gather(1, (histories != NOTHING).sum(-1, keepdim=True) - 1)
        items = (last + 1 + torch.arange(k)).where(torch.arange(k) < 4, NOTHING)
        two = torch.full((len(histories),), 2)
        return RankedLists(items, -items.float(), *([two, 4 * two, 2 * two] if self.speculative else []))


SEEN = torch.arange(12) < 6
SAMPLES = [
    Sample(0, (9, 9, 1), (2,)),  # seen, first
    Sample(1, (3,), (5,)),  # seen, second
    Sample(2, (0, 1, 2, 3, 4), (1,)),  # seen, not found
    Sample(3, (5,), (7,)),  # unseen, second
]


@pytest.mark.parametrize("batch_size", [1, 3, 9])
def test_figures_are_those_of_each_kind_of_target(batch_size):
    result = evaluate(LastPlusOne(True), SAMPLES, SEEN, batch_size=batch_size, max_history=3, cutoffs=(1, 4))
    second = 1 / math.log2(3)
    assert result.requests == {"all": 4, "in-sample": 3, "unseen": 1}
    assert result.quality["in-sample"] == pytest.approx(
        {"Recall@1": 1 / 3, "Recall@4": 2 / 3, "NDCG@1": 1 / 3, "NDCG@4": (1 + second) / 3}
    )
    assert result.quality["unseen"] == pytest.approx({"Recall@1": 0, "Recall@4": 1, "NDCG@1": 0, "NDCG@4": second})
    for name, value in result.quality["all"].items():  # recombined
        assert value == pytest.approx((3 * result.quality["in-sample"][name] + result.quality["unseen"][name]) / 4)
    assert (result.rounds, result.acceptance) == (2, 0.5)
    assert result.unseen_share == pytest.approx((0 + 2 + 3 + 4) / 16)
    assert result.seconds > 0


def test_a_recommender_that_does_not_draft_has_no_rounds():
    result = evaluate(LastPlusOne(False), SAMPLES[:2], SEEN, cutoffs=(1, 6))
    assert (result.rounds, result.acceptance) == (None, None)


def test_where_there_is_no_such_target_the_figures_are_not_numbers():
    found = evaluate(LastPlusOne(False), SAMPLES[:2], SEEN, cutoffs=(1, 6)).quality
    assert found["unseen"] == pytest.approx(dict.fromkeys(found["all"], math.nan), nan_ok=True)


def test_batches_hold_every_sample_once_and_only_its_last_items():
    found = {i: row for indices, rows in batches_of(SAMPLES, 3, 3, "cpu") for i, row in zip(indices, rows, strict=True)}
    assert {i: [x for x in row.tolist() if x != NOTHING] for i, row in found.items()} == {
        0: [9, 9, 1], 1: [3], 2: [2, 3, 4], 3: [5],
    }  # fmt: skip
    with pytest.raises(ValueError, match="no samples"):
        evaluate(LastPlusOne(False), [], SEEN)
