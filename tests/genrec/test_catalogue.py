"""Identifiers: what is read, what is refused, and token ids."""

import json
import re

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from genrec.data.catalogue import Catalogue, find_index, read_stop_list
from genrec.data.dataset import load_dataset
from genrec.runtime.errors import UserError

INDEX = {"3": ["<a_10>", "<b_1>"], "0": ["<a_2>", "<b_1>"], "10": ["<a_10>", "<b_1>"], "1": ["<a_2>", "<b_0>"]}


def write(folder, index, name="tiny.index.json"):
    """A data set of items 0, 1, 3 and 10, and its index: a value, or the text of the file."""
    folder = folder / "tiny"
    folder.mkdir(exist_ok=True)
    for split, row in (("train", "1 1 2"), ("valid", "1 4"), ("test", "1 11")):
        (folder / f"sequential_{split}.txt").write_text(f"{row}\n")
    path = folder / name
    path.write_text(index if isinstance(index, str) else json.dumps(index))
    return path


def word_level_tokenizer(words):
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, "<a_2>")))


def test_hand_worked_catalogue(tmp_path):
    path = write(tmp_path, INDEX)
    catalogue = Catalogue.load(path)
    assert catalogue.levels == 2
    assert catalogue.items_of == {("<a_2>", "<b_1>"): [0], ("<a_2>", "<b_0>"): [1], ("<a_10>", "<b_1>"): [3, 10]}
    assert catalogue.tokens == ["<a_2>", "<a_10>", "<b_0>", "<b_1>"], "by level, 2 before 10"
    ids = catalogue.token_ids(word_level_tokenizer(["<unk>", "<b_1>", "<b_0>", "<a_10>", "<a_2>"]))
    assert ids.tolist() == [[4, 1], [4, 2], [3, 1], [3, 1]], "items 0, 1, 3, 10"
    with pytest.raises(UserError, match=r"tokenizer lacks 2 of 4 identifier tokens, such as <a_10>"):
        catalogue.token_ids(word_level_tokenizer(["<a_2>", "<b_1>"]))


def test_save_and_load_round_trip_and_fingerprint(tmp_path):
    path = write(tmp_path, INDEX)
    catalogue = Catalogue.load(path)
    catalogue.save(tmp_path / "saved.json")
    again = Catalogue.load(tmp_path / "saved.json")
    assert again == catalogue
    assert again.fingerprint == catalogue.fingerprint
    assert list(again.identifiers) == [0, 1, 3, 10]
    other = Catalogue(catalogue.identifiers | {0: ("<a_2>", "<b_0>")})
    assert other.fingerprint != catalogue.fingerprint


def test_the_order_of_tokens_is_the_same_in_every_process():
    """A set's order differs between processes, and <a_1> and <a_01> are the same number."""
    for level in (["<a_1>", "<a_01>", "<a_001>"], ["<a_001>", "<a_01>", "<a_1>"]):
        assert Catalogue({i: (token,) for i, token in enumerate(level)}).tokens == ["<a_001>", "<a_01>", "<a_1>"]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (INDEX | {"7": ["<a_1>"]}, r"item 7: <a_1> has 1 tokens, the others have 2"),
        (INDEX | {"7": ["<b_1>", "<b_2>"]}, r"item 7: token <b_1> stands at level 0 here and at level 1 elsewhere"),
        ({"7": ["<a_1>", "<a_1>"]}, r"item 7: token <a_1> stands at level 1 here and at level 0 elsewhere"),
        ('{"7": ["<a_1>"], "8": ["<a_2>"], "7": ["<a_3>"]}', r"key '7' stands twice"),
        (INDEX | {"01": ["<a_2>", "<b_1>"]}, r"item '01' is not an integer"),
        (INDEX | {"x": ["<a_2>", "<b_1>"]}, r"item 'x' is not an integer >= 0"),
        (INDEX | {"-1": ["<a_2>", "<b_1>"]}, r"item '-1' is not an integer >= 0"),
        (INDEX | {"7": "a_1 b_1"}, r"item 7: 'a_1 b_1' is not a list of tokens"),
        (INDEX | {"7": ["<a_1>", 3]}, r"item 7: \['<a_1>', 3\] is not a list of tokens"),
        (INDEX | {"7": ["<a_1>", " "]}, r"item 7: \['<a_1>', ' '\] is not a list of tokens"),
        (INDEX | {"7": []}, r"item 7: \[\] is not a list of tokens"),
        (json.dumps(INDEX)[:40], r"not valid JSON, perhaps truncated"),
        ("", r"not valid JSON, perhaps truncated"),
        ([1], r"not a JSON object that maps items to identifiers"),
        ({}, r"not a JSON object that maps items to identifiers"),
        ({key: INDEX[key] for key in ("0", "3", "10")}, r"item 1 has no identifier \(1 of the 4 items of .*tiny have"),
        ({"1": INDEX["1"]}, r"item 0 has no identifier \(3 of the 4 items .* index of another data set\?"),
        (
            INDEX | {str(i): INDEX["0"] for i in range(20, 25)},
            r"names 9 items, of which only 4 occur .* another data s",
        ),
    ],
)
def test_what_is_wrong_is_named_by_file_key_and_value(tmp_path, index, message):
    path = write(tmp_path, index)
    with pytest.raises(UserError, match=re.escape(f"{path}: ") + message) as error:
        load_dataset(str(tmp_path), "tiny")
    assert "\n" not in str(error.value)


def test_the_index_is_the_only_one_that_matches_or_the_one_named(tmp_path):
    first = write(tmp_path, INDEX)
    folder = first.parent
    write(tmp_path, "not an index", name="other.index.json")
    assert find_index(folder, "tiny") == first
    second = write(tmp_path, INDEX, name="tiny.LCRec.json")
    with pytest.raises(UserError, match=r"2 files match \(tiny\.LCRec\.json, tiny\.index\.json\); .*--index FILE"):
        load_dataset(str(tmp_path), "tiny")
    assert load_dataset(str(tmp_path), "tiny", str(second)).catalogue == Catalogue.load(first)
    with pytest.raises(UserError, match=r"no file matches; name the identifier index with --index FILE"):
        find_index(folder, "absent")
    with pytest.raises(UserError, match=r"absent\.json: no such file"):
        load_dataset(str(tmp_path), "tiny", str(folder / "absent.json"))


def test_what_is_stopped_has_no_identifier_unless_it_shares_one(tmp_path):
    catalogue, stop_list = Catalogue.load(write(tmp_path, INDEX)), tmp_path / "stopped.txt"
    for text, left in (
        ("", {0: 0, 1: 1, 3: 3, 10: 10}),
        ("10\n", {0: 0, 1: 1, 3: 3}),  # shares with 3
        ("0\r\n 3 \n10\n0\n", {1: 1}),  # item 3 too: the identifier is gone
    ):
        stop_list.write_bytes(text.encode())
        served = catalogue.without(read_stop_list(stop_list, catalogue))
        assert served.identifiers == {item: catalogue.identifiers[item] for item in left}
        assert {item for items in served.items_of.values() for item in items} == left.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\n\nx\n", r", line 3: 'x' is not the number of an item; write one a line, from 0"),
        ("0\n1 3\n", r", line 2: '1 3' is not the number of an item"),
        ("B000052YOW\n", r", line 1: 'B000052YOW' is not the number .*items\.parquet"),
        ("-1\n", r", line 1: '-1' is not the number of an item"),
        ("9" * 5000, r", line 1: '9+' is not the number of an item"),
        ("0\n1\n2\n", r", line 3: item 2 is not in the catalogue"),
        ("0\n1\n3\n10\n", r": names all 4 items, so that none is left to recommend"),
    ],
)
def test_a_stop_list_that_does_not_fit_is_refused_by_line(tmp_path, text, message):
    catalogue, path = Catalogue.load(write(tmp_path, INDEX)), tmp_path / "stopped.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(str(path)) + message) as error:
        read_stop_list(path, catalogue)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"absent\.txt: no such file"):
        read_stop_list(tmp_path / "absent.txt", catalogue)


def test_tokens_may_stand_in_one_text_as_onerec_writes_them(tmp_path):
    path = tmp_path / "one.json"
    listed = ["<|sid_begin|>", "<s_a_4>", "<s_b_7>", "<|sid_end|>"]
    path.write_text(json.dumps({"0": "<|sid_begin|><s_a_3><s_b_7><|sid_end|>", "1": listed}))
    catalogue = Catalogue.load(path)
    assert catalogue.identifiers[0] == ("<|sid_begin|>", "<s_a_3>", "<s_b_7>", "<|sid_end|>")
    assert catalogue.levels == 4


def test_interactions_and_texts_of_lc_rec_are_not_taken_for_an_index(tmp_path):
    for kind in ("index", "inter", "item"):
        (tmp_path / f"Arts.{kind}.json").write_text("{}")
    assert find_index(tmp_path, "Arts").name == "Arts.index.json"
