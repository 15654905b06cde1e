"""The numbers of the page about a data set against naive counts, the published ones of Beauty, and the page itself."""

import math
import os
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from atspeed.commands.inspect import main
from beamsd import Trie
from conftest import BEAUTY
from genrec.data.catalogue import Catalogue, find_index
from genrec.data.dataset import Dataset, load_dataset
from genrec.data.split_report import count_splits
from genrec.data.splits import SPLITS, Splits
from genrec.data.toy import make_toy
from genrec.reports import description
from genrec.reports.page import make_page
from genrec.runtime.errors import UserError

TRAIN, VALID, TEST = {0: [0, 1, 0], 1: [1], 2: [1, 2]}, {0: [3, 3], 1: [], 2: [0]}, {1: [4, 3], 2: [4, 1, 2]}
IDENTIFIERS = {0: "ax", 1: "ax", 2: "ay", 3: "bx", 4: "cz", 5: "cz", 6: "cz"}
HAND = Dataset("hand", Splits(TRAIN, VALID, TEST), Catalogue({item: tuple(name) for item, name in IDENTIFIERS.items()}))


def test_hand_worked_numbers():
    splits, catalogue = HAND.splits, HAND.catalogue
    lengths = {split: description.history_lengths(HAND, split).tolist() for split in SPLITS}
    assert lengths == {"train": [2, 1], "valid": [3, 2], "test": [1, 3]}
    assert description.popularity(splits.train).tolist() == [3, 2, 1], "items 1, 0 and 2"
    assert description.share_of_most_popular(np.array([3, 2, 1]), 7, 0.3) == pytest.approx(5 / 6)
    assert [use.tolist() for use in description.code_use(catalogue)] == [[3, 3, 1], [3, 3, 1]]
    assert description.perplexity(np.array([3, 3, 1])) == pytest.approx(
        2 ** (2 * 3 / 7 * math.log2(7 / 3) + 1 / 7 * math.log2(7))
    )
    assert description.perplexity(np.full(9, 4)) == pytest.approx(9)
    assert [found.tolist() for found in description.children(catalogue)] == [[3], [2, 1, 1]]
    assert description.items_below(catalogue, 0) == 7
    assert description.items_below(catalogue, 1) == pytest.approx(7 / 3)
    assert description.items_below(catalogue, 2, splits.train) == pytest.approx((5 * 2 + 1) / 6)
    counted = {"valid": (2, 1, 3, 2), "test": (4, 2, 5, 3)}
    for split, numbers in counted.items():
        of = count_splits(splits)[split]
        assert (of.items, of.cold_items, of.interactions, of.cold_interactions) == numbers
    assert description.shared_identifiers(catalogue) == {("c", "z"): [4, 5, 6], ("a", "x"): [0, 1]}


def test_children_and_items_below_are_those_of_the_trie_that_decodes():
    catalogue = make_toy(seed=3, n_items=300, n_users=60).catalogue
    number = {token: i for i, token in enumerate(catalogue.tokens)}
    items = torch.tensor([[number[token] for token in tokens] for tokens in catalogue.identifiers.values()])
    trie = Trie(items)
    states = trie.walk(items)  # (n_items, L + 1)
    for length, found in enumerate(description.children(catalogue)):
        prefixes, below = states[:, length].unique(return_counts=True)
        counts = trie.first_child[prefixes + 1] - trie.first_child[prefixes]
        assert found.tolist() == counts.sort(descending=True).values.tolist()
        assert description.items_below(catalogue, length) == pytest.approx(below.double().mean().item())


@pytest.mark.skipif(not BEAUTY.is_dir(), reason=f"no Beauty data at {BEAUTY}: set BEAUTY to their folder")
def test_the_released_beauty_data_have_the_published_trie():
    data = load_dataset(str(BEAUTY.parent), BEAUTY.name, str(find_index(BEAUTY, "beauty")))
    assert [len(use) for use in description.code_use(data.catalogue)] == [91, 256, 256, 256]
    assert [len(found) for found in description.children(data.catalogue)] == [1, 91, 6_539, 11_172]
    assert [sum(found) for found in description.children(data.catalogue)] == [91, 6_539, 11_172, 12_023]
    assert round(description.items_below(data.catalogue, 2), 1) == 1.8
    assert round(description.items_below(data.catalogue, 2, data.splits.train), 1) == 4.2, "weighted by popularity"
    assert sum(map(len, description.shared_identifiers(data.catalogue).values())) == 21
    assert [len(description.history_lengths(data, split)) for split in SPLITS] == [19_383, 4_295, 3_553]
    assert description.popularity(data.splits.train).sum() == 122_241
    assert [count_splits(data.splits)[split].interactions for split in SPLITS[1:]] == [9_316, 7_313]


@pytest.fixture
def world(tmp_path):
    """A small toy with the times of its interactions, a day apart; in their order they are training first."""
    toy, folder = make_toy(n_items=300, n_users=60), tmp_path / "data" / "toy"
    toy.save(folder)
    split = [split for split in SPLITS for items in toy.splits[split].values() for _ in items]
    days = np.arange(len(split)) * 86_400
    columns = {"timestamp": pa.array(days * 10**6, pa.timestamp("us", "UTC")), "split": pa.array(split)}
    write_times(folder, **columns)
    return folder, toy, columns


def write_times(folder, **columns):
    pq.write_table(pa.table(columns), folder / "interactions.parquet")


def test_times_are_read_by_split_as_times_or_as_seconds(world):
    folder, toy, columns = world
    n = [sum(map(len, toy.splits[split].values())) for split in SPLITS]
    expected = np.split(np.arange(sum(n)).astype("datetime64[D]"), np.cumsum(n)[:-1])
    seconds = columns["timestamp"].cast(pa.int64()).to_numpy() // 10**6
    for changes in ({}, {"split": columns["split"].dictionary_encode()}, {"timestamp": pa.array(seconds)}):
        write_times(folder, **columns | changes)
        times = description.read_times(folder, toy.splits)
        for split, days in zip(SPLITS, expected, strict=True):
            assert (times[split] == days).all()
            assert times[split].dtype == "datetime64[s]"
    (folder / "interactions.parquet").unlink()
    assert description.read_times(folder, toy.splits) is None


def test_times_that_do_not_fit_are_refused(world):
    folder, toy, columns = world
    n = len(columns["split"])
    for changes, message in (
        ({"timestamp": pa.nulls(n, pa.timestamp("us"))}, rf"{n} of {n} rows have no timestamp"),
        ({"timestamp": pa.array(np.full(n, 1_400_112_000_000))}, r"such as 1400112000000, neither times nor whole sec"),
        ({"timestamp": pa.array(["2014"] * n)}, r"holds object such as 2014, neither times nor whole seconds"),
        ({"split": pa.array(["train"] * n)}, rf"holds {n} interactions of the split train, but the splits .* \d+"),
        ({"split": pa.array([1] * n)}, r"not a Parquet file that can be read"),
    ):
        write_times(folder, **columns | changes)
        with pytest.raises(UserError, match=r"interactions\.parquet: .*" + message):
            description.read_times(folder, toy.splits)
    write_times(folder, timestamp=columns["timestamp"])
    with pytest.raises(UserError, match=r"has no column split \(only timestamp\)"):
        description.read_times(folder, toy.splits)
    (folder / "interactions.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"not a Parquet file that can be read"):
        description.read_times(folder, toy.splits)


class Page(HTMLParser):
    """What a page shows: the cells of its tables' rows, its pictures, and all that it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.pictures, self.fetched, self.open = [], [], [], []
        self.feed(text)
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "img":
            assert len(attributes["alt"]) > 20
            self.pictures.append(attributes["src"])
        self.fetched += [v for k, v in attributes.items() if k in ("src", "href") and not v.startswith("data:")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def test_the_command_writes_one_page_that_fetches_nothing(world, tmp_path):
    folder, toy, _ = world
    done = subprocess.run(
        [sys.executable, "-m", "atspeed", "inspect", "toy"], cwd=tmp_path, text=True, capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("written to output/toy/data.html\n")
    text = (tmp_path / "output/toy/data.html").read_text()
    page = Page(text)
    assert not page.fetched
    assert len(page.pictures) == 6
    assert all(picture.startswith("data:image/svg+xml;base64,") for picture in page.pictures)
    test = [items for items in toy.splits.test.values() if items]
    distinct = {item for items in test for item in items}
    assert ["test", *map(str, (sum(map(len, test)), len(test), len(distinct), len(test)))] in page.rows
    for tokens, items in toy.catalogue.items_of.items():
        assert (["".join(tokens), ", ".join(map(str, items))] in page.rows) == (len(items) > 1)
    assert make_page(load_dataset(str(folder.parent), "toy"), "data/toy", times(folder), 20) == text, (
        "the same each time"
    )


def times(folder):
    return description.read_times(folder, load_dataset(str(folder.parent), "toy").splits)


def test_what_is_not_there_is_said_and_names_are_escaped():
    data = Dataset("<b>&", HAND.splits, HAND.catalogue)
    text = make_page(data, "data/<b>&", None, 20)
    assert len(Page(text).pictures) == 5
    assert "there is no interactions.parquet" in text
    assert "<b>" not in text
    one = Dataset("one", Splits({0: [0]}, {0: [0]}, {0: [0]}), Catalogue({0: ("a",)}))
    text = make_page(one, "", None, 20)
    assert len(Page(text).pictures) == 5, "no training sample, one level, nothing cold"
    assert "Every item has an identifier of its own." in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(dataset="absent"), r"data/absent: no such data set folder"),
        (dict(dataset="toy", output="data"), r"--output data must end in \.html"),
        (dict(dataset="toy", output="data.html/"), r"data\.html: is a folder, and a file is to be written there"),
        (dict(dataset="toy", output="mine.html"), r"mine\.html: is there already; choose another --output, or pass"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written_or_replaced(world, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.html").mkdir()
    (tmp_path / "mine.html").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        main(arguments.pop("dataset"), **arguments)
    assert sorted(tmp_path.rglob("*")) == before
