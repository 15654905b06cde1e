"""Splits in every form of a data set, and what is refused."""

import json
import re

import numpy as np
import pytest

from genrec.data.catalogue import Catalogue
from genrec.data.dataset import Dataset
from genrec.data.splits import Splits, load_splits, save_samples
from genrec.runtime.errors import UserError

TRAIN, VALID, TEST = {0: [4, 2, 3], 1: [0, 1], 2: [5]}, {0: [1], 1: [], 2: [0, 0]}, {0: [], 1: [2, 2, 3], 2: []}
DICTS = dict(zip(("training_dict.npy", "validation_dict.npy", "testing_dict.npy"), (TRAIN, VALID, TEST), strict=True))
TEXTS = {  # users and items count from 1
    "sequential_train.txt": "1 5 3 4\n2 1 2\n3 6\n",
    "sequential_valid.txt": "1 2\n2\n3 1 1\n",
    "sequential_test.txt": "1\n2 3 3 4\n3\n",
}


def write(folder, files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        if isinstance(content, str):
            (folder / name).write_text(content)
        else:
            np.save(folder / name, content, allow_pickle=True)
    return folder


def test_both_forms_give_the_same_splits(tmp_path):
    dicts, texts = load_splits(write(tmp_path / "npy", DICTS)), load_splits(write(tmp_path / "txt", TEXTS))
    assert dicts == texts == Splits(TRAIN, VALID, TEST)
    assert dicts.fingerprint == texts.fingerprint
    assert texts.items() == {0, 1, 2, 3, 4, 5}


def test_the_fingerprint_is_that_of_the_interactions(tmp_path):
    splits = Splits(TRAIN, VALID, TEST)
    assert Splits(dict(reversed(TRAIN.items())), {0: [1], 2: [0, 0]}, TEST).fingerprint == splits.fingerprint
    others = [
        Splits(TRAIN, TEST, VALID),
        Splits(TRAIN | {0: [2, 4, 3]}, VALID, TEST),
        Splits(TRAIN, VALID, {1: [2, 3]}),
    ]
    assert len({other.fingerprint for other in [splits, *others]}) == 4


@pytest.mark.parametrize(
    ("form", "name", "content", "message"),
    [
        (TEXTS, "sequential_valid.txt", None, r"sequential_valid\.txt: no such file; a data set needs"),
        (DICTS, "testing_dict.npy", None, r"testing_dict\.npy: no such file; a data set needs"),
        (TEXTS, "sequential_train.txt", "1 5\n2 x 2\n", r"sequential_train\.txt, line 2: '2 x 2' is not a row"),
        (TEXTS, "sequential_train.txt", "1 5\n2 1.0\n", r"sequential_train\.txt, line 2: '2 1\.0' is not a row"),
        (TEXTS, "sequential_train.txt", "1 5\n\n2 x\n", r"sequential_train\.txt, line 3: '2 x' is not a row"),
        (TEXTS, "sequential_test.txt", "1 2\n2 1\n1 3\n", r"sequential_test\.txt, line 3: user 1 stands twice"),
        (TEXTS, "sequential_train.txt", "1 5\n2 0 1\n", r"sequential_train\.txt, line 2: '2 0 1' holds a number below"),
        (TEXTS, "sequential_train.txt", "0 5\n2 1\n", r"sequential_train\.txt, line 1: '0 5' holds a number below"),
        (TEXTS, "sequential_test.txt", "1\n2\n3\n", r"sequential_test\.txt: the split is empty"),
        (TEXTS, "sequential_test.txt", "", r"sequential_test\.txt: the split is empty"),
        (TEXTS, "sequential_test.txt", "9 1\n", r"sequential_test\.txt: user 9 .* no history in sequential_train\.txt"),
        (DICTS, "testing_dict.npy", {9: [1]}, r"testing_dict\.npy: user 9 .* no history in training_dict\.npy"),
        (DICTS, "training_dict.npy", TRAIN | {0: []}, r"validation_dict\.npy: user 0 .* no history in training_dict"),
        (DICTS, "training_dict.npy", TRAIN | {0: [4, -2]}, r"training_dict\.npy: user 0: item -2 is not an integer"),
        (DICTS, "training_dict.npy", TRAIN | {0: [4.0]}, r"training_dict\.npy: user 0: item 4\.0 is not an integer"),
        (DICTS, "training_dict.npy", TRAIN | {0: ["4"]}, r"training_dict\.npy: user 0: item '4' is not an integer"),
        (DICTS, "training_dict.npy", TRAIN | {0: [True]}, r"training_dict\.npy: user 0: item True is not an integer"),
        (DICTS, "training_dict.npy", TRAIN | {-1: [4]}, r"training_dict\.npy: user -1 is not an integer"),
        (DICTS, "training_dict.npy", TRAIN | {"u": [4]}, r"training_dict\.npy: user 'u' is not an integer"),
        (DICTS, "training_dict.npy", TRAIN | {0: 4}, r"training_dict\.npy: user 0: the items are a int, not a list"),
        (DICTS, "training_dict.npy", TRAIN | {0: np.array([[4]])}, r"training_dict\.npy: user 0: the items are"),
        (DICTS, "validation_dict.npy", {}, r"validation_dict\.npy: the split is empty"),
    ],
)
def test_what_is_wrong_is_named_by_file_key_and_value(tmp_path, form, name, content, message):
    folder = write(tmp_path / "toy", form)
    load_splits(folder)
    (folder / name).unlink()
    if content is not None:
        write(folder, {name: content})
    with pytest.raises(UserError, match=re.escape(f"{folder}/") + message) as error:
        load_splits(folder)
    assert "\n" not in str(error.value)


def test_the_text_form_serves_where_the_dicts_are_not_all_there(tmp_path):
    folder = write(tmp_path / "toy", TEXTS | {"training_dict.npy": {0: [9]}})
    assert load_splits(folder) == Splits(TRAIN, VALID, TEST)


def test_missing_folder_and_unknown_split(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such data set folder; .*bash data/download\.sh"):
        load_splits(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"unknown split 'dev'; the splits are train, valid, test"):
        Splits(TRAIN, VALID, TEST)["dev"]


SEQUENCES = {"0": [3, 1, 2, 5], "7": [1, 2], "3": [4, 3, 1]}


def test_a_folder_of_lc_recs_interactions_is_cut_by_leave_one_out(tmp_path):
    (tmp_path / "Arts.inter.json").write_text(json.dumps(SEQUENCES, indent=2))
    (tmp_path / "Arts.item.json").write_text("{}")
    splits = load_splits(tmp_path)
    assert splits.train == {0: [3, 1], 7: [1, 2], 3: [4]}
    assert splits.valid == {0: [2], 7: [], 3: [3]}
    assert splits.test == {0: [5], 7: [], 3: [1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "not a JSON object that maps users to lists of items"),
        ('{"a": [1, 2, 3]}', "user 'a' is not an integer"),
        ('{"1": [1, "x", 3]}', "user 1: item 'x' is not an integer >= 0"),
        ('{"1": [1, 2]}', "no user has the three items that leave-one-out needs"),
    ],
)
def test_what_is_wrong_with_lc_recs_interactions_is_named(tmp_path, content, message):
    (tmp_path / "Arts.inter.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_splits(tmp_path)


def test_given_samples_are_the_samples_one_label_each(tmp_path):
    rows = {
        "train": [(0, [4, 5], 6), (0, [4, 5, 6], 7), (1, [], 2)],
        "valid": [(0, [4, 5, 6, 7], 8), (2, [9, 9], 9)],
        "test": [(0, [4, 5, 6, 7, 8], 1), (0, [5, 6, 7, 8, 1], 2)],
    }
    save_samples(rows, tmp_path)
    splits = load_splits(tmp_path)
    assert splits.train == {0: [4, 5, 6, 7], 1: [2]}, "what a user did: the first history and every item"
    assert splits.test == {0: [1, 2]}
    data = Dataset("given", splits, Catalogue({item: ("<a>", f"<b_{item}>") for item in range(10)}))
    assert [(each.user, each.history, each.labels) for each in data.samples("train")] == [
        (0, (4, 5), (6,)), (0, (4, 5, 6), (7,)),
    ]  # fmt: skip
    assert data.samples("test", max_history=2)[1].history == (8, 1)
    other = load_splits(tmp_path)
    assert other.fingerprint == splits.fingerprint
    save_samples(rows | {"test": rows["test"][:1]}, tmp_path)
    assert load_splits(tmp_path).fingerprint != splits.fingerprint
