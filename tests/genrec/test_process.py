"""From raw files to splits: every format, against a naive pandas version; what is broken; Beauty as it was released."""

import gzip
import io
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial

import numpy as np
import pandas as pd
import pytest

from atspeed.commands import process_data
from conftest import BEAUTY, STAGES, save_encoder, script, succeed
from genrec.data.dataset import load_dataset
from genrec.data.split_report import count_splits
from genrec.data.splits import SPLITS, load_splits
from genrec.raw.process import cut_times
from genrec.raw.raw_files import inspect
from genrec.raw.records import read_records
from genrec.runtime import text
from genrec.runtime.cli import run
from genrec.runtime.errors import UserError
from genrec.runtime.files import file_sha256

DAY = 86_400
OUT = "out"


def ratings(n=3000, users=150, items=100, seed=0):
    """Seconds are whole days, so that many are equal; a user may meet an item twice. Ids sort otherwise as text."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "user": [f"U{number}" for number in (users * rng.random(n) ** 2).astype(int)],
            "item": [f"{number:04d}" for number in (items * rng.random(n) ** 2).astype(int)],
            "rating": rng.choice([1.0, 2.0, 3.0, 4.0, 5.0], n, p=[0.05, 0.05, 0.1, 0.3, 0.5]),
            "timestamp": 1_300_000_000 // DAY * DAY + DAY * rng.integers(0, 300, n),
        }
    )


def naive(raw, min_rating=4, user_core=0, item_core=0, ratios=(8, 1, 1), min_train_items=2, keep_duplicates=False):
    """The interactions that are left with their split, by raw ids and in order, as one would first write it."""
    left = raw[raw.rating >= min_rating] if min_rating is not None else raw
    left = left.sort_values(["timestamp", "user", "item", "rating"])
    if not keep_duplicates:
        left = left.drop_duplicates(["user", "item"])
    while True:
        busy = left[left.groupby("user").item.transform("size") >= user_core]
        busy = busy[busy.groupby("item").user.transform("size") >= item_core]
        if len(busy) == len(left):
            break
        left = busy
    times = sorted(left.timestamp)
    test = int(len(times) * ratios[2] / sum(ratios))
    valid = int(len(times) * ratios[1] / sum(ratios))
    first_valid, first_test = times[-test - valid], times[-test]
    left = left.assign(
        split=["train" if t < first_valid else "valid" if t < first_test else "test" for t in left.timestamp]
    )
    trained = left[left.split == "train"].groupby("user").size()
    return left[left.user.isin(trained[trained >= min_train_items].index)].reset_index(drop=True)


def write_json_lines(path, frame, open_with=gzip.open):
    with open_with(path, "wt", encoding="utf-8") as file:
        for record in frame.to_dict("records"):
            file.write(json.dumps(record) + "\n")


def amazon_2014(path, raw, open_with=gzip.open):
    more = {"reviewText": 'He said "so, so"\nand a tab\t{}', "helpful": [[0, 1]] * len(raw), "reviewTime": "01 3, 2014"}
    names = {"user": "reviewerID", "item": "asin", "rating": "overall", "timestamp": "unixReviewTime"}
    write_json_lines(path, raw.rename(columns=names).assign(**more), open_with)


def amazon_2023(path, raw):
    names = {"user": "user_id", "item": "parent_asin"}
    milliseconds = raw.assign(timestamp=raw.timestamp * 1000, asin="variant", title="ü", images=[[]] * len(raw))
    write_json_lines(path, milliseconds.rename(columns=names))


def amazon_2023_csv(path, raw):
    frame = raw.rename(columns={"user": "user_id", "item": "parent_asin"})[
        ["user_id", "parent_asin", "rating", "timestamp"]
    ]
    frame.assign(timestamp=frame.timestamp * 1000, history="0001 0002").to_csv(path, index=False)


def semicolons_and_quotes(path, raw):
    frame = raw.assign(
        note='a ";" b', timestamp=pd.to_datetime(raw.timestamp, unit="s").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    )
    path.write_bytes(b"\xef\xbb\xbf" + frame.to_csv(index=False, sep=";", quoting=1, lineterminator="\r\n").encode())


def parquet_of_moments(path, raw):
    raw.assign(timestamp=pd.to_datetime(raw.timestamp, unit="s", utc=True)).to_parquet(path)


FORMATS = {  # file name -> how it is written, and the flags that it takes
    "reviews_2014_5.json.gz": (amazon_2014, []),
    "reviews_2018.json": (lambda path, raw: amazon_2014(path, raw, open), []),
    "2023.jsonl.gz": (amazon_2023, []),
    "2023.csv": (amazon_2023_csv, []),
    "2023.csv.gz": (amazon_2023_csv, []),
    "no-known-suffix": (semicolons_and_quotes, []),
    "moments.parquet": (parquet_of_moments, []),
    "own.tsv": (
        lambda path, raw: raw.set_axis(["who", "what is", "o/k~", "when"], axis=1).to_csv(path, index=False, sep="\t"),
        ["--user", "who", "--item", "what is", "--timestamp", "when", "--rating", "o/k~"],
    ),
    "own.json": (
        lambda path, raw: write_json_lines(path, raw.set_axis(["a/b", "it's", "~", "time"], axis=1), open),
        ["--user", "a/b", "--item", "it's", "--rating", "~"],
    ),
    "no-header.csv": (
        lambda path, raw: raw[["item", "user", "rating", "timestamp"]].to_csv(path, index=False, header=False),
        ["--columns", "item,user,rating,timestamp"],
    ),
}  # fmt: skip


def process(folder, source, *flags):
    """Run the stage as from the command line, but in this process; returns what it printed and its exit code."""
    code, argv, said = 0, sys.argv, io.StringIO()
    sys.argv = ["process_data.py", "--input", str(source), "--output", str(folder), *flags]
    try:
        with redirect_stdout(said), redirect_stderr(said):
            run(process_data.main)
    except SystemExit as error:
        code = error.code
    finally:
        sys.argv = argv
    return said.getvalue(), code


def made(folder, source, *flags):
    output, code = process(folder, source, *flags)
    assert code == 0, output
    return output


def contents(folder):
    """All bytes but the manifest's, which names inputs, command and date."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "facts.json"}


def assert_equals_naive(folder, expected):
    """Interactions, ids and both forms of the splits say the same as `expected`."""
    table = pd.read_parquet(folder / "interactions.parquet")
    raw = {name: pd.read_parquet(folder / f"{name}s.parquet") for name in ("user", "item")}
    for name, ids in raw.items():
        assert ids[name].tolist() == list(range(len(ids)))
        assert sorted(ids.raw_id) == sorted(set(expected[name]))
        assert table[name].map(ids.raw_id).tolist() == expected[name].tolist()
    assert (table.timestamp.astype("int64") // 10**6).tolist() == expected.timestamp.tolist()
    assert table.split.tolist() == expected.split.tolist()
    splits = load_splits(folder)
    number = {name: dict(zip(ids.raw_id, ids[name], strict=True)) for name, ids in raw.items()}
    for split in SPLITS:
        mine = {user: [] for user in range(len(raw["user"]))}
        part = expected[expected.split == split]
        for user, item in zip(part.user, part.item, strict=True):
            mine[number["user"][user]].append(number["item"][item])
        assert splits[split] == mine
    shutil.copytree(folder, folder.parent / "texts", ignore=shutil.ignore_patterns("*.npy"))
    assert load_splits(folder.parent / "texts") == splits


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_ends_in_the_splits_of_the_naive_version(name, tmp_path):
    write, flags = FORMATS[name]
    raw = ratings()
    write(tmp_path / name, raw)
    output = made(tmp_path / OUT, tmp_path / name, *flags)
    expected = naive(raw)
    assert_equals_naive(tmp_path / OUT, expected)
    assert f"{len(expected):,}  interactions left" in output
    rated = pd.read_parquet(tmp_path / OUT / "interactions.parquet").rating
    assert rated.tolist() == expected.rating.tolist()


@pytest.mark.parametrize(
    "settings",
    [
        dict(user_core=5, item_core=8),
        dict(user_core=12, min_rating=None),
        dict(item_core=9, ratios=(6, 3, 1.5), min_train_items=1),
        dict(min_rating=4.5, min_train_items=9, keep_duplicates=True),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_every_setting_equals_the_naive_version(settings, seed, tmp_path):
    raw = ratings(seed=seed)
    raw.to_csv(tmp_path / "raw.csv", index=False)
    flags = []
    for name, value in settings.items():
        flags += [f"--{name}", "" if value is None else str(value).strip("()").replace(" ", "")]
    made(tmp_path / OUT, tmp_path / "raw.csv", *flags)
    expected = naive(raw, **settings)
    assert 100 < len(expected) < len(raw)
    assert_equals_naive(tmp_path / OUT, expected)


def test_the_order_of_lines_and_their_division_into_files_change_nothing(tmp_path):
    raw = ratings()
    raw.to_csv(tmp_path / "raw.csv", index=False)
    made(tmp_path / OUT, tmp_path / "raw.csv")
    shuffled = raw.sample(frac=1, random_state=3)
    for name, part in (
        ("train.csv", shuffled[:1000]),
        ("valid.csv.gz", shuffled[1000:1100]),
        ("test.csv", shuffled[1100:]),
    ):
        part.to_csv(tmp_path / name, index=False)
    amazon_2023(tmp_path / "all.jsonl.gz", shuffled)
    for number, source in enumerate([f"{tmp_path}/t*.csv, {tmp_path}/valid.csv.gz", tmp_path / "all.jsonl.gz"]):
        made(tmp_path / f"again{number}", source, "--split", "time")
        assert contents(tmp_path / f"again{number}") == contents(tmp_path / OUT)


def test_without_ratings_everything_counts(tmp_path):
    raw = ratings()
    raw.drop(columns="rating").to_csv(tmp_path / "raw.csv", index=False)
    made(tmp_path / OUT, tmp_path / "raw.csv")
    assert_equals_naive(tmp_path / OUT, naive(raw.drop(columns="rating").assign(rating=5)))
    assert pd.read_parquet(tmp_path / OUT / "interactions.parquet").rating.isna().all()


def test_what_stands_at_a_cut_belongs_to_the_later_split():
    assert cut_times(np.arange(154_272), (8, 1, 1)) == (154_272 - 2 * 15_427, 154_272 - 15_427)
    assert cut_times(np.array([1, 1, 1, 2, 2, 2, 2, 3, 3, 3]), (8, 1, 1)) == (3, 3)
    assert cut_times(np.array([1, 1, 1, 2, 2, 2, 3, 3, 3, 3]), (5, 3, 2)) == (2, 3)
    with pytest.raises(UserError, match="9 interactions are too few to cut by 8:1:1"):
        cut_times(np.arange(9), (8, 1, 1))


GOOD = {
    "json": [
        f'{{"user_id": "u{k % 3}", "parent_asin": "i{k}", "rating": 5.0, "timestamp": {10**9 + k}}}' for k in range(40)
    ],
    "csv": ["user_id,parent_asin,rating,timestamp", *(f"u{k % 3},i{k},5.0,{10**9 + k}" for k in range(40))],
}
BROKEN = [
    ("json", '{"user_id": "u", "parent_asin": ', "'{\"user_id\": \"u\", \"parent_asin\":' is no JSON object"),
    ("json", "user_id, parent_asin", "'user_id, parent_asin' is no JSON object"),
    ("json", '{"parent_asin": "i", "rating": 5, "timestamp": 1}', "field user_id is missing"),
    ("json", "[]", "field user_id is missing"),
    ("json", '{"user_id": "u", "parent_asin": "", "rating": 5, "timestamp": 1}', "field parent_asin is missing"),
    ("json", '{"user_id": "u", "parent_asin": null, "rating": 5, "timestamp": 1}', "field parent_asin is missing"),
    ("json", '{"user_id": "u", "parent_asin": "i", "rating": "good", "timestamp": 1}', "field rating: 'good' is no"),
    ("json", '{"user_id": "u", "parent_asin": "i", "rating": 5, "timestamp": "soon"}',
     "field timestamp: 'soon' is no number and no date"),
    ("json", '{"user_id": "u", "parent_asin": "i", "rating": 5, "timestamp": 1e30}', "field timestamp: '1e30' is no"),
    ("csv", "u,i,5", "'u,i,5' has not the 4 fields user_id, parent_asin, rating, timestamp"),
    ("csv", 'u,"i,5', "'u,\"i,5' has not the 4 fields"),
    ("csv", "u,i,5,1,1", "'u,i,5,1,1' has not the 4 fields"),
    ("csv", ",i,5,1", "field user_id is missing"),
    ("csv", "u,,5,1", "field parent_asin is missing"),
    ("csv", "u,i\xff,5,1", "field parent_asin: 'i\ufffd' is not UTF-8"),
    ("csv", "u,i,five,1", "field rating: 'five' is no number"),
    ("csv", "u,i,nan,1", "field rating: 'nan' is no number"),
    ("csv", "u,i,,1", "field rating is missing"),
    ("csv", "u,i,5,later", "field timestamp: 'later' is no number and no date"),
    ("csv", "u,i,5,inf", "field timestamp: 'inf' is no number and no date"),
    ("csv", "u,i,5,", "field timestamp is missing"),
]  # fmt: skip


def read(path, work, strict=False, **named):
    work.mkdir(exist_ok=True)
    return read_records([inspect(path, None, named)], 4.0, strict, work)


@pytest.mark.parametrize(("form", "line", "message"), BROKEN)
def test_a_broken_line_is_counted_and_shown_by_file_line_and_field(form, line, message, tmp_path, caplog):
    good, path = tmp_path / "good", tmp_path / "raw"
    good.write_text("\n".join(GOOD[form]))
    lines = [*GOOD[form][:7], "", line, *GOOD[form][7:]]  # the blank line is none
    path.write_bytes("\r\n".join(lines).encode("latin-1"))
    whole, reading = read(good, tmp_path / "work"), read(path, tmp_path / "work")
    assert (reading.read, reading.broken, reading.below) == (whole.read + 1, 1, 0)
    for one, other in zip(vars(reading.records).values(), vars(whole.records).values(), strict=True):
        assert np.array_equal(one, other)
    assert f"{path}: 1 of 41 records are broken and left out" in caplog.text
    assert f"{path}, line 9: {message}" in caplog.text
    with pytest.raises(UserError, match=re.escape(f"{path}, line 9: {message}")) as error:
        read(path, tmp_path / "work", strict=True)
    assert str(error.value).endswith("1 of 41 records are broken, which --strict refuses")


def test_a_broken_row_of_a_parquet_file_is_shown_by_its_number(tmp_path, caplog):
    raw = pd.DataFrame(
        {"user": ["u", None, "u"], "item": [7, 8, 9], "time": [1e9 + 1.5, 1e9 + 2, np.nan], "rating": [4, 5, 5]}
    )
    raw.to_parquet(tmp_path / "raw")
    reading = read(tmp_path / "raw", tmp_path / "work")
    assert (reading.broken, reading.records.items.tolist(), reading.records.timestamp.tolist()) == (
        2,
        ["7"],
        [1_000_000_001_500_000],
    )
    assert "raw, line 2: field user is missing" in caplog.text
    assert "raw, line 3: field time is missing" in caplog.text


def test_lines_are_counted_over_blocks_and_only_the_first_broken_ones_are_shown(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(text, "BLOCK", 100)
    lines = GOOD["csv"] + [f"u,i,5,soon{k}" for k in range(30)]
    for path, open_with in ((tmp_path / "raw.csv", open), (tmp_path / "raw.csv.gz", gzip.open)):
        with open_with(path, "wb") as file:
            file.write("\n".join(lines).encode())
        caplog.clear()
        reading = read(path, tmp_path / "work")
        assert (reading.read, reading.broken, len(reading.records)) == (70, 30, 40)
        assert [f"line {number}: " in caplog.text for number in range(41, 48)] == [False] + 5 * [True] + [False]


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ("a,b,c\n1,2,3\n", [], "raw: no column is known as user; pass --user NAME; the columns are a, b, c"),
        ("user,item,when\n1,2,3\n", [], "raw: no column is known as timestamp; pass --timestamp NAME, or --split"),
        ("user,item,time\n1,2,3\n", ["--item", "sku"], "raw: --item sku: no such column; the columns are user, item"),
        ("user,item,time\n1,2,3\n", ["--rating", "stars"], "raw: --rating stars: no such column; the columns are user"),
        ('{"user": 1}\n', [], "raw: no column is known as item; pass --item NAME; the columns are user"),
        ('[{"user": 1}]', [], "raw: no column is known as item; pass --item NAME; the columns are user"),
        ("[1, 2]", [], "raw, line 1: '[1, 2]' begins a JSON array, and not one of objects"),
        ("{'user': 1}", ["--format", "json"], "raw: no column is known as item; pass --item NAME; the columns are"),
        ("user_item\n", [], "raw, line 1: 'user_item' has none of the delimiters that are taken: comma, tab,"),
        ("7,9,5,1000000003\n", [], "raw, line 1: is no header, but data: '7,9,5,1000000003'; name the columns, such as "
         "--columns user,item,rating,timestamp, which is our guess, or the data set: --format amazon-2014-ratings"),
        ("user,item,time\n1,2,3\n", [], "raw: 1 of 1 times fall in 1970: time has no seconds"),
        ("user,item,time\n1,2,15/03/2011 13:39\n", [], "raw: no time is a time, such as '15/03/2011 13:39'; pass "
         "--time_format '%d/%m/%Y %H:%M'"),
        ("user,item\n1,2\n", ["--split", "time"], "raw: no column is known as timestamp; pass --timestamp NAME"),
        ("user,item,time\n1,2,1000000003\n", ["--split", "given"], "--split given: the names of the files must say"),
        ("user,item,time\n1,2,1000000003\n", ["--split", "random"], "--split random: choose from time, leave_one_out"),
        ("user,item,time\n1,2,1000000003\n", ["--min_rating", "nan"], "--min_rating nan: must be finite"),
        ("user,item,time\n1,2,1000000003\n", ["--format", "ml-2m"], "--format ml-2m: choose from json, csv, parquet, "),
        (100_000 * '{"user":' + "\n", [], "is no JSON object, nor is any of the first 1 lines"),
        ('user,"' + 200_000 * "x" + '",time\n', [], "raw, line 1: not CSV (field larger than"),
        ("user,item,time\n1,2,3\n".encode("utf-16"), [], "raw: is UTF-16; convert it to UTF-8: iconv -f UTF-16"),
        ("", [], "raw: holds nothing"),
        ("user,item,time\n1,2,3\n", ["--format", "parquet"], "raw: not a Parquet file, or damaged"),
        ("user,item,time\n1,2,3\n", ["--format", "json"], "raw, line 1: 'user,item,time' is no JSON object"),
        ("user,item,time\n1,2,3\n", ["--format", "tsv"], "--format tsv: choose from json, csv, parquet"),
        ("user,item,time\n1,2,3\n", ["--columns", "user,item"], "raw, line 1: 3 fields, but --columns names 2"),
        ("user,item,time,stars\n1,2,1000000003,2\n", [], "--input: no whole record with a rating of at least 4 ("),
        ("user,item,time\n1,2,1000000003\n", [], "1 interactions are too few to cut by 8:1:1"),
        ("user,item,time\n1,2,1000000003\n", ["--user_core", "2"], "--user_core 2, --item_core 0: none of 1 inter"),
        ("user,item,time\n" + "1,2,3\n2,2,3\n" * 9, ["--keep_duplicates", "--time_format", "order"], "the train split "
         "is empty: 18 interactions, cut at 3 (1970-01-01 00:00:03 UTC) and 3 (1970-01-01 00:00:03 UTC), have none"),
        (gzip.compress(b"user,item,time\n1,2,3\n" * 999, mtime=0)[:-9], [], "raw: truncated gz: it ends before"),
        ("user,item,time\n1,2,3\n", ["--ratios", "8,2"], "--ratios 8,2: pass three numbers, such as 8,1,1"),
        ("user,item,time\n1,2,3\n", ["--ratios", "8,2,0"], "--ratios 8,2,0: must be above 0, each"),
        ("user,item,time\n1,2,3\n", ["--ratios", "8:1:1"], "--ratios takes numbers with commas between"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_line_and_leaves_nothing(content, flags, message, tmp_path):
    path = tmp_path / "raw"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    said, code = process(tmp_path / OUT, path, *flags)
    last = said.splitlines()[-1]
    assert code == 2
    assert last.startswith("error: ")
    assert message in last.replace(f"{tmp_path}/", "")
    assert list(tmp_path.iterdir()) == [path]


def test_the_script_runs_once_and_does_not_overwrite(tmp_path, caplog):
    amazon_2014(tmp_path / "reviews.json.gz", ratings())
    world = dict(INPUT=str(tmp_path / "reviews.json.gz"), DATASET="mine", USER_CORE="3", RATIOS="7,2,1")
    output = succeed("process_data", tmp_path, **world)
    folder = tmp_path / "data" / "mine"
    before = contents(folder)
    assert f"written to {folder}" in output
    assert_equals_naive(folder, naive(ratings(), user_core=3, ratios=(7, 2, 1)))
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["counts"]["records read"] == 3000
    assert facts["arguments"]["input"] == [f"reviews.json.gz {file_sha256(tmp_path / 'reviews.json.gz')}"]
    assert facts["splits"]["test"] == vars(count_splits(load_splits(folder))["test"])
    flags = ["--user_core", "3", "--ratios", "7,2,1"]
    output, code = script("process_data", tmp_path, **world | dict(USER_CORE="4"))
    assert (code, "was made with --user_core 3, not 4; choose another DATASET, or pass --overwrite" in output) == (
        2,
        True,
    )
    with caplog.at_level("INFO"):
        assert made(folder, world["INPUT"], *flags) == ""
    assert "done already" in caplog.text
    amazon_2014(tmp_path / "reviews.json.gz", ratings(seed=1))
    output, code = process(folder, world["INPUT"], *flags)
    assert (code, "was made with --input" in output) == (2, True)
    assert contents(folder) == before
    made(folder, world["INPUT"], *flags, "--overwrite")
    assert contents(folder) != before
    output, code = script("process_data", tmp_path, INPUT="", DATASET="mine")
    assert (code, "set INPUT to raw files and DATASET" in output) == (2, True)


def test_what_another_stage_or_a_person_put_there_is_not_replaced(tmp_path):
    folder = tmp_path / OUT
    folder.mkdir()
    ratings().to_csv(folder / "raw.csv", index=False)
    output, code = process(folder, folder / "raw.csv", "--overwrite")
    assert (code, "is there already, and not from this stage" in output) == (2, True)
    assert [path.name for path in folder.iterdir()] == ["raw.csv"]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_an_interruption_leaves_nothing_and_the_next_run_what_an_unbroken_one_does(tmp_path, by):
    """What kill -9 leaves, half a folder under a name of its own, is removed by the run that comes after."""
    source = tmp_path / "raw.csv"
    ratings(*((300_000, 9_000, 5_000) if by == signal.SIGINT else (60_000, 2_000, 1_000))).to_csv(source, index=False)
    command = [sys.executable, "-m", "atspeed", "process-data", "--input", source, "--output", tmp_path / OUT]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell runs in the background ignores it
    stage = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=heard)
    while not list(tmp_path.glob(".out.partial-*/work")):
        assert stage.poll() is None
        time.sleep(0.01)
    stage.send_signal(by)
    assert stage.wait(60) != 0
    if by == signal.SIGINT:
        assert list(tmp_path.iterdir()) == [source]
        return
    assert not (tmp_path / OUT).exists()
    made(tmp_path / OUT, source)
    made(tmp_path / "whole", source)
    assert contents(tmp_path / OUT) == contents(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"raw.csv", OUT, "whole"}


# The release: data/data_process.ipynb of AtSpeed, run on reviews_Beauty_5.json.gz. That file is not here, so one is
# made that has its numbers: the released interactions, and those of 2,886 users who were dropped.
CUTS = 1394409600, 1400112000


def beauty_reviews():
    """(lines, splits): users, items and times such that the released splits come out of them."""
    splits, place = load_splits(BEAUTY), list(range(12_035))
    random.Random(2023).shuffle(place)  # item -> place of its raw id among the sorted ones
    lines = []
    for start, split in zip((CUTS[0] - 1000 * DAY, *CUTS), SPLITS, strict=True):
        for user, items in splits[split].items():
            lines += [(f"A{user:06d}", f"B{place[item]:06d}", start + n) for n, item in enumerate(items)]
    # 1,177 of the dropped have one training item; all have five interactions or six later on, 51 items only they have.
    late = [(start + 60, n) for start, n in zip(CUTS, (6_111, 8_114), strict=True)]
    times = [time for time, n in late for _ in range(n)]
    dropped = [(k % 2_886, k // 2_886, time) for k, time in enumerate(times)]
    lines += [(f"Z{user:06d}", f"B{(37 * user + n) % 12_035:06d}", time) for user, n, time in dropped]
    lines += [(f"Z{user:06d}", f"C{user % 51:06d}", CUTS[0] - 1) for user in range(1_177)]
    return lines, splits


@pytest.mark.skipif(not BEAUTY.is_dir(), reason=f"no Beauty data at {BEAUTY}: set BEAUTY to their folder")
def test_beauty_comes_out_as_it_was_released(tmp_path):
    lines, splits = beauty_reviews()
    random.Random(0).shuffle(lines)
    with gzip.open(tmp_path / "reviews_Beauty_5.json.gz", "wt", compresslevel=1) as file:
        for user, item, when in lines:
            file.write(f'{{"reviewerID": "{user}", "asin": "{item}", "overall": 4.0, "unixReviewTime": {when}}}\n')
        file.write('{"reviewerID": "A000000", "asin": "none", "overall": 3.0, "unixReviewTime": 1}\n')
    output = made(tmp_path / OUT, tmp_path / "reviews_Beauty_5.json.gz")
    assert load_splits(tmp_path / OUT) == splits
    for said in (
        "154,272  interactions\n", "22,269  of users\n", "12,086  on items\n", "2,886  users dropped",
        "138,870  interactions left\n", "19,383  users left\n", "12,035  items left\n",
        "122,241  in train\n", "9,316  in valid\n", "7,313  in test\n", "1  with a rating below",
        "validation from 1394409600 (2014-03-10 00:00:00 UTC), test from 1400112000 (2014-05-15 00:00:00 UTC)",
    ):  # fmt: skip
        assert said in output, output


@pytest.mark.skipif(not BEAUTY.is_dir(), reason=f"no Beauty data at {BEAUTY}: set BEAUTY to their folder")
def test_warm_and_cold_of_beauty_are_those_of_the_release():
    train, valid, test = count_splits(load_splits(BEAUTY)).values()
    assert (train.items, train.cold_items, train.users) == (11_717, 0, 19_383)
    assert (valid.items - valid.cold_items, valid.cold_items, valid.cold_interactions) == (3_927, 176, 851)
    assert (test.items - test.cold_items, test.cold_items, test.cold_interactions) == (3_313, 269, 1_841)
    assert (valid.users_with_warm, valid.users_with_cold, valid.users) == (4_131, 485, 4_131 + 485 - 321)
    assert (test.users_with_warm, test.users_with_cold, test.users) == (2_932, 974, 2_932 + 974 - 353)


@pytest.mark.skipif(not BEAUTY.is_dir(), reason=f"no Beauty data at {BEAUTY}: set BEAUTY to their folder")
def test_the_release_numbers_items_as_we_do():
    """Its raw file lists reviews by item, its users are numbered by their first line: so, unshuffled, a user's least
    item never goes down from one user to the next."""
    splits, place = load_splits(BEAUTY), list(range(12_035))
    random.Random(2023).shuffle(place)
    least = [min(place[item] for split in SPLITS for item in splits[split][user]) for user in sorted(splits.train)]
    assert least == sorted(least)


SMALL_INDEX = {"CODEBOOKS": "8,8,8,16", "HIDDEN": "16", "LATENT": "4", "EPOCHS": "5", "BATCH_SIZE": "16"}


@pytest.mark.parametrize(
    "name", [n if n == "2023.jsonl.gz" else pytest.param(n, marks=pytest.mark.slow) for n in FORMATS]
)
def test_two_commands_lead_from_raw_data_to_a_data_set(tmp_path, name):
    """Interactions in each format, and what the items are called in the metadata of 2014."""
    write, flags = FORMATS[name]
    write(tmp_path / name, ratings())
    meta, words = tmp_path / "meta.json.gz", ("Soap", "Comb", "Rose", "mild", "red")
    with gzip.open(meta, "wt") as file:  # Python dicts, as it was published, and not JSON
        for item in range(100):
            title = " ".join(words[item // 5**place % 5] for place in range(3))
            file.write(f"{{'asin': '{item:04d}', 'title': \"{title}\", 'categories': [['Beauty']]}}\n")
    variables = SMALL_INDEX | {"INPUT": str(tmp_path / name), "DATASET": "mine", "TARGET_BASE": str(tmp_path / "base")}
    succeed("process_data", tmp_path, *flags, **variables)
    encoder = {"ITEMS": str(meta), "ENCODER": str(save_encoder(tmp_path / "encoder"))}
    assert "collision" in succeed("build_index", tmp_path, **(variables | encoder))
    data = load_dataset(str(tmp_path / "data"), "mine")
    assert data.splits.items() <= data.catalogue.identifiers.keys()
    assert data.catalogue.levels == 4
    if name == "reviews_2014_5.json.gz":
        command = [sys.executable, "-m", "atspeed", "init-model", "--output", tmp_path / "base", "--layers", "2"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        said = [succeed(stage, tmp_path, *(["--full"] if stage == STAGES[0] else []), **variables) for stage in STAGES]
        assert "lists identical for all methods; 0 differ" in said[STAGES.index("inference")]
