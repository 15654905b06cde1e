"""The table of the baselines, worked by hand."""

import pytest

from atspeed.benchmark.recommendation_quality import (
    TARGET,
    judge,
    make_baseline,
    recommend_unseen,
    save_quality,
    target_over_baselines,
)
from genrec.data.catalogue import Catalogue
from genrec.data.dataset import Dataset, Sample
from genrec.data.splits import Splits
from genrec.evaluation.baselines import BASELINES

TRAIN, VALID, TEST = {0: [1, 2, 3], 1: [1, 2], 2: [2, 1], 3: [5]}, {0: [4], 3: [3, 0]}, {0: [0], 3: [2]}
DATA = Dataset("tiny", Splits(TRAIN, VALID, TEST), Catalogue({item: (f"<a_{item}>",) for item in range(6)}))


def test_a_row_holds_means_over_users_and_their_standard_errors(tmp_path):
    samples = [Sample(0, (), (5,)), Sample(1, (), (6, 7)), Sample(2, (), (8,))]
    table = judge({"one": [[5, 1], [7, 6], [1, 2]], "two": [[], [], [8]]}, samples, (1, 2))
    one, two = table.set_index("method").T.items()
    assert one[1]["Recall@1"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert one[1]["Recall@1 s.e."] == pytest.approx(0.5 / 3**0.5)
    assert one[1]["Recall@2"] == one[1]["NDCG@2"] == pytest.approx(2 / 3)
    assert two[1]["Recall@1"] == pytest.approx(1 / 3)
    shown = save_quality(tmp_path, table, target_over_baselines({}, samples, (1,)), "three users")
    assert not (tmp_path / "over.csv").exists(), "there is no target"
    assert "| two    |   0.3333 |" in shown
    assert (tmp_path / "quality.md").read_text() == f"three users\n\n{shown}"
    assert (tmp_path / "quality.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("popularity", "test", [1, 2, 3]),
        ("co-occurrence", "test", [1, 2, 3]),  # in training nothing followed 3
        ("co-occurrence up to date", "test", [0, 4, 1]),  # in validation 0 and 4 did
        ("co-occurrence up to date", "valid", [1, 2, 3]),  # which nobody knew then
    ],
)
def test_what_a_baseline_may_know(name, split, expected):
    assert make_baseline(name, DATA, split, max_history=5).recommend([[3]], 3) == [expected]


def test_the_target_over_a_baseline_is_paired_by_user(tmp_path):
    samples = [Sample(user, (), (5,)) for user in range(40)]
    lists = {"popularity": [[1]] * 40, TARGET: [[5]] * 10 + [[1]] * 30}
    over = target_over_baselines(lists, samples, (1,))
    recall, _ = over.itertuples(index=False)
    assert (recall.over, recall.metric, recall.mean) == ("popularity", "Recall@1", 0.25)
    assert 0.1 < recall.low < 0.16
    assert 0.35 < recall.high < 0.42
    shown = save_quality(tmp_path, judge(lists, samples, (1,)), over, "forty users")
    assert f"| Recall@1 | +0.2500 ({recall.low:+.4f} to {recall.high:+.4f}) |" in shown
    assert (tmp_path / "over.csv").read_text().startswith("over,metric,mean,low,high\npopularity,Recall@1,0.25,")


def test_a_baseline_recommends_the_next_best_in_place_of_what_was_seen():
    baseline = make_baseline("popularity", DATA, "test", max_history=5)
    first, second, third = baseline.ranked[:3]
    assert recommend_unseen(baseline, [[1], [2], []], [{first, 4}, set(), set(range(6))], 2) == [
        [second, third], [first, second], [],
    ]  # fmt: skip


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_ranks_the_whole_catalogue(name):
    (ranked,) = make_baseline(name, DATA, "test", max_history=5).recommend([[1, 2]], 10)
    assert sorted(ranked) == list(range(6))
