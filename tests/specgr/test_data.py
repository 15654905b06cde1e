import pandas as pd
import pytest
import torch

from conftest import ROOT
from genrec.data.catalogue import Catalogue
from genrec.data.splits import SPLITS
from genrec.data.toy import make_toy
from genrec.identifiers.vectors import load_embeddings
from genrec.runtime.errors import UserError
from specgr.data.examples import load_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "toy"
    make_toy(n_items=300, n_users=300, new_items=0.6).save(folder)
    return folder


def write(folder, **splits):
    folder.mkdir()
    for split, rows in splits.items():
        (folder / f"sequential_{split}.txt").write_text(rows)


def test_every_item_of_a_split_is_a_target_after_its_true_history(tmp_path):
    write(tmp_path / "d", train="1 1 2 3\n2 2\n", valid="1 4\n2 1 4\n", test="1 5 1\n2 3\n")
    Catalogue({i: (f"<a_{i}>", "<b_0>") for i in range(5)}).save(tmp_path / "d/d.index.json")
    data = load_data(str(tmp_path), "d", max_history=3)
    assert (data.train.histories.tolist(), data.train.targets.tolist()) == ([[0, -1, -1], [0, 1, -1]], [1, 2])
    assert data.valid.histories.tolist() == [[0, 1, 2], [1, -1, -1], [1, 0, -1]]
    assert data.valid.targets.tolist() == [3, 0, 3]
    assert data.test.histories.tolist() == [[1, 2, 3], [2, 3, 4], [1, 0, 3]]
    assert data.test.targets.tolist() == [4, 0, 2]
    assert data.seen.tolist() == [True, True, True, False, False]
    assert [len(data.subset(data.test, name)) for name in ("all", "in-sample", "unseen")] == [3, 2, 1]


def test_the_toy_has_new_items_that_nobody_has_before_they_are_out(folder):
    data = load_data(str(folder.parent), "toy")
    assert 0.1 < len(data.subset(data.test, "unseen")) / len(data.test) < 0.4
    assert data.seen[data.train.targets].all()
    vectors = load_embeddings(folder / "embeddings.npy", 300)
    sure = torch.arange(300)
    near = torch.nn.functional.normalize(vectors, dim=-1)
    nearest = (near @ near.T - 2 * torch.eye(300)).argmax(-1)
    same = (data.codes.codes[sure, 0] == data.codes.codes[nearest, 0]).float().mean()
    assert same > 0.9, "an item's nearest text is of its category"


def test_a_choice_of_samples_is_the_same_for_the_same_seed(folder):
    valid = load_data(str(folder.parent), "toy").valid
    chosen = valid.sample(20, 3)
    assert torch.equal(chosen.targets, valid.sample(20, 3).targets)
    assert len(chosen) == 20
    assert valid.sample(None, 0) is valid


def test_the_shipped_toy_is_read():
    data = load_data(str(ROOT / "data"), "toy")
    assert len(data.train) == 16_791 - 2_000
    assert len(data.test) == 975


@pytest.mark.parametrize(("n_items", "message"), [(4, "item 4 has no identifier"), (11, "of which only 5 occur")])
def test_the_index_of_another_data_set_is_refused(tmp_path, n_items, message):
    for split in SPLITS:
        pd.DataFrame({"user": [0, 1], "history": [[], [0, 1]], "item": [2, 3 + (split == "test")]}).to_parquet(
            tmp_path / f"{split}.parquet"
        )
    one_item = {i: (f"<a_{i}>", "<b_0>") for i in range(n_items)}
    Catalogue(one_item).save(tmp_path / f"{tmp_path.name}.index.json")
    with pytest.raises(UserError, match=message):
        load_data(str(tmp_path.parent), tmp_path.name)
