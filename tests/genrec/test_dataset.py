"""Samples worked by hand; and the released Beauty data, where they are there."""

import shutil

import pytest
import torch

from beamsd import Trie
from conftest import BEAUTY
from genrec.data.catalogue import Catalogue, find_index
from genrec.data.dataset import Dataset, Sample, load_dataset, take
from genrec.data.splits import Splits, load_splits
from genrec.runtime.errors import UserError

TRAIN = {7: [1, 2, 3], 2: [4], 5: list(range(30))}
VALID = {7: [4, 5], 2: [6, 6], 5: []}
TEST = {7: [8, 9, 8], 2: [], 5: [1]}
TINY = Dataset("tiny", Splits(TRAIN, VALID, TEST), Catalogue({item: (f"<a_{item}>",) for item in range(30)}))


@pytest.mark.parametrize(
    ("split", "options", "samples"),
    [
        # user 2 has one training item: nothing comes before it
        ("train", {}, [Sample(5, tuple(range(9, 29)), (29,)), Sample(7, (1, 2), (3,))]),
        ("train", dict(max_history=1), [Sample(5, (28,), (29,)), Sample(7, (2,), (3,))]),
        (
            "train",
            dict(subseq=True, max_history=3),
            [
                *(Sample(5, tuple(range(max(0, end - 3), end)), (end,)) for end in range(1, 30)),
                Sample(7, (1,), (2,)),
                Sample(7, (1, 2), (3,)),
            ],
        ),
        (
            "train",
            dict(subseq=True, max_history=12, in_windows=True),  # every item but the first stands in one, and is learnt
            [
                Sample(5, tuple(range(0, 5)), (5,)),
                Sample(5, tuple(range(5, 17)), (17,)),
                Sample(5, tuple(range(17, 29)), (29,)),
                Sample(7, (1, 2), (3,)),
            ],
        ),
        (
            "train",
            dict(max_history=12, in_windows=True),
            [Sample(5, tuple(range(17, 29)), (29,)), Sample(7, (1, 2), (3,))],
        ),
        ("valid", {}, [Sample(2, (4,), (6,)), Sample(7, (1, 2, 3), (4,))]),
        ("test", {}, [Sample(5, tuple(range(10, 30)), (1,)), Sample(7, (1, 2, 3, 4, 5), (8, 9))]),
        ("test", dict(max_history=None), [Sample(5, tuple(range(30)), (1,)), Sample(7, (1, 2, 3, 4, 5), (8, 9))]),
        ("test", dict(max_history=4), [Sample(5, (26, 27, 28, 29), (1,)), Sample(7, (2, 3, 4, 5), (8, 9))]),
    ],
)
def test_hand_worked_samples(split, options, samples):
    assert TINY.samples(split, **options) == samples


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"unknown split 'dev'"):
        TINY.samples("dev")


def test_take_is_a_choice_by_seed_that_keeps_the_order():
    samples = TINY.samples("train", subseq=True)
    assert take(samples, None, seed=0) == take(samples, len(samples), seed=0) == samples
    taken = take(samples, 9, seed=3)
    assert len(taken) == 9
    assert taken == sorted(taken, key=samples.index)
    assert taken == take(samples, 9, seed=3)
    assert taken != take(samples, 9, seed=4)


@pytest.mark.skipif(not BEAUTY.is_dir(), reason=f"no Beauty data at {BEAUTY}: set BEAUTY to their folder")
def test_the_released_beauty_data_have_the_published_counts(tmp_path):
    data = load_dataset(str(BEAUTY.parent), BEAUTY.name, str(find_index(BEAUTY, "beauty")))
    splits, catalogue = data.splits, data.catalogue
    assert (len(splits.train), len(splits.items()), len(catalogue.identifiers)) == (19_383, 12_035, 12_035)
    parts = splits.train, splits.valid, splits.test
    assert [sum(map(len, part.values())) for part in parts] == [122_241, 9_316, 7_313]
    assert [len(data.samples(split)) for split in ("train", "valid", "test")] == [19_383, 4_295, 3_553]
    assert len(data.samples("train", subseq=True)) == 122_241 - 19_383
    assert len(catalogue.tokens) == 859
    assert sum(len(items) for items in catalogue.items_of.values() if len(items) > 1) == 21

    number = {token: i for i, token in enumerate(catalogue.tokens)}
    identifiers = torch.tensor([[number[token] for token in tokens] for tokens in catalogue.identifiers.values()])
    assert [len(column.unique()) for column in identifiers.T] == [91, 256, 256, 256]
    prefixes = Trie(identifiers).walk(identifiers)
    assert [len(column.unique()) for column in prefixes.T] == [1, 91, 6_539, 11_172, 12_023]

    for split in ("train", "valid", "test"):
        shutil.copy(BEAUTY / f"sequential_{split}.txt", tmp_path)
    assert load_splits(tmp_path) == splits
