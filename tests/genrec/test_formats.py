"""Every row of docs/your-data.md, run as it stands there, on small files in the schemas of the data sets."""

import ast
import gzip
import json
import re
import subprocess

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT, environment
from genrec.data.splits import SPLITS, load_splits

DAY = 86_400
ROWS = re.findall(
    r"^\| (.+?) \| `([^|]*bash script/process_data\.sh[^`]*)`.*\|$", (ROOT / "docs/your-data.md").read_text(), re.M
)


def ratings(users=40, items=25, seed=0):
    """Interactions of users, each on days of its own, in the order of time; everyone has at least five."""
    chance, rows = np.random.default_rng(seed), []
    for user in range(users):
        start = (15_000 + int(chance.integers(30))) * DAY
        for place, item in enumerate(chance.permutation(items)[: chance.integers(5, 12)]):
            rows.append(
                (f"A{user:02}USER{user:04}XYZ", f"B00{item:07}", int(chance.integers(1, 6)), start + place * DAY)
            )
    return pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])


def lines(path, rows):
    path.write_text("".join(f"{row}\n" for row in rows))


def json_lines(path, records, literal=False):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt") as file:
        for record in records:
            file.write((repr(record) if literal else json.dumps(record)) + "\n")


def renamed(raw, **names):
    """Records with other names; a name of None is left out. Values: a column, or a function of a row."""
    return [
        {name: (of(row) if callable(of) else getattr(row, of)) for name, of in names.items()}
        for row in raw.itertuples()
    ]


def when(form):
    return lambda row: pd.Timestamp(row.timestamp, unit="s", tz="UTC").strftime(form)


def text(row):
    return f'he said "well", {row.item}; {row.rating}'


def csv(path, raw, header=True, sep=",", **columns):
    frame = pd.DataFrame(renamed(raw, **(columns or {name: name for name in raw.columns})))
    frame.to_csv(path, index=False, header=header, sep=sep)


def numbers(raw):
    """The same with whole numbers for users and items, from 0."""
    return raw.assign(**{name: raw[name].astype("category").cat.codes for name in ("user", "item")})


def sequences(raw):
    return {user: part.item.tolist() for user, part in raw.groupby("user")}


def split_files(raw, write):
    """train, valid, test by leave-one-out."""
    last = raw.groupby("user").cumcount(ascending=False)
    for name, part in (("train", raw[last > 1]), ("valid", raw[last == 1]), ("test", raw[last == 0])):
        write(name, part)


def samples(raw):
    """A row an interaction but the first of a user: the history before it."""
    rows = []
    for user, part in raw.groupby("user"):
        items, times = part["item"].tolist(), part["timestamp"].tolist()
        rows += [(user, items[:place], items[place], times[place]) for place in range(1, len(items))]
    return pd.DataFrame(rows, columns=["user", "history", "item", "timestamp"])


def index_of(n):
    return {str(item): [f"<a_{item % 5}>", f"<b_{item // 5}>"] for item in range(n)}


def lc_rec(folder, raw):
    content = {str(user): items for user, items in sequences(numbers(raw)).items()}
    (folder / "Instruments.inter.json").write_text(json.dumps(content, indent=4))
    (folder / "Instruments.index.json").write_text(json.dumps(index_of(26)))  # one item never occurs
    items = {str(item): {"title": f"Item {item}", "description": "d"} for item in range(26)}
    (folder / "Instruments.item.json").write_text(json.dumps(items, indent=4))


def mini_one_rec(folder, raw):
    (folder / "index").mkdir()
    (folder / "index/Office.index.json").write_text(json.dumps(index_of(26)))
    (folder / "index/Office.item.json").write_text(
        json.dumps({str(item): {"title": f"Item {item}"} for item in range(26)})
    )

    def write(name, part):
        (folder / name).mkdir()
        csv(folder / name / "Office.csv", part, user_id=lambda row: f"A{row.user}",
            history_item_title=lambda row: "['a, b']", item_title=lambda row: 'a "b", c', history_item_id="history",
            item_id="item", item_sid=lambda row: "<a_1><b_2>")  # fmt: skip

    split_files(samples(numbers(raw)), write)


def recbole_lists(folder, raw):
    split_files(samples(raw), lambda name, part: csv(
        folder / f"list.{name}.inter", part, sep="\t",
        **{"user_id:token": "user", "item_id_list:token_seq": lambda row: " ".join(row.history),
           "item_id:token": "item"},
    ))  # fmt: skip


def amazon_histories(folder, raw):
    split_files(samples(raw), lambda name, part: csv(
        folder / f"his.{name}.csv.gz", part, user_id="user", parent_asin="item", rating=lambda row: 5.0,
        timestamp=lambda row: row.timestamp * 1000, history=lambda row: " ".join(row.history),
    ))  # fmt: skip


def bundles(raw):
    return [
        {"user_id": user, "user_url": "u", "reviews": [
            {"funny": "", "posted": when("Posted %B %d, %Y.")(row), "item_id": row.item, "recommend": True}
            for row in part.itertuples()]}
        for user, part in raw.groupby("user")
    ]  # fmt: skip


def mind(path, raw):
    """Each impression shows what was clicked and something else."""
    lines(path, [
        f"{number}\t{row.user}\t{when('%m/%d/%Y %I:%M:%S %p')(row)}\tN1 N2\t{row.item}-1 N99-0"
        for number, row in enumerate(raw.itertuples(), 1)
    ])  # fmt: skip


WRITERS = {  # the beginning of a row -> what writes its files
    "Amazon 2014, 2018": lambda f, raw: json_lines(f / "reviews_Beauty_5.json.gz", renamed(
        raw, reviewerID="user", asin="item", overall=lambda row: float(row.rating), unixReviewTime="timestamp",
        reviewText=text)),
    "Amazon 2014, ratings": lambda f, raw: csv(f / "ratings_Beauty.csv", raw, header=False),
    "Amazon 2018, ratings": lambda f, raw: csv(
        f / "All_Beauty.csv", raw[["item", "user", "rating", "timestamp"]], header=False),
    "Amazon 2023, reviews": lambda f, raw: json_lines(f / "All_Beauty.jsonl.gz", renamed(
        raw, rating="rating", title=text, asin=lambda row: "variant", parent_asin="item", user_id="user",
        timestamp=lambda row: row.timestamp * 1000)),
    "Amazon 2023, ratings": lambda f, raw: csv(
        f / "All_Beauty.csv.gz", raw, user_id="user", parent_asin="item", rating="rating",
        timestamp=lambda row: row.timestamp * 1000),
    "Amazon 2023, benchmark in": lambda f, raw: split_files(raw, lambda name, part: csv(
        f / f"All_Beauty.{name}.csv.gz", part, user_id="user", parent_asin="item", rating="rating",
        timestamp=lambda row: row.timestamp * 1000)),
    "Amazon 2023, benchmark with": amazon_histories,
    "LC-Rec": lc_rec,
    "MiniOneRec": mini_one_rec,
    "RecBole: ": lambda f, raw: csv(f / "NAME.inter", raw, sep="\t", **{
        "user_id:token": "user", "item_id:token": "item", "rating:float": "rating", "timestamp:float": "timestamp"}),
    "RecBole, split: ": lambda f, raw: split_files(raw, lambda name, part: csv(
        f / f"split.{name}.inter", part, sep="\t", **{"user_id:token": "user", "item_id:token": "item"})),
    "RecBole, split, with": recbole_lists,
    "P5": lambda f, raw: lines(f / "sequential_data.txt", [
        " ".join(map(str, [user + 1, *(item + 1 for item in items)]))
        for user, items in sequences(numbers(raw)).items()]),
    "SASRec": lambda f, raw: lines(f / "Beauty.txt", [f"{row.user} {row.item}" for row in numbers(raw).itertuples()]),
    "MovieLens-100k": lambda f, raw: csv(f / "u.data", numbers(raw), header=False, sep="\t"),
    "MovieLens-1M": lambda f, raw: lines(
        f / "ratings.dat", ["::".join(map(str, row)) for row in numbers(raw).to_numpy()]),
    "MovieLens-20M": lambda f, raw: csv(f / "ratings.csv", numbers(raw), userId="user", movieId="item", rating="rating",
                                        timestamp="timestamp"),
    "Yelp": lambda f, raw: json_lines(f / "yelp_academic_dataset_review.json", renamed(
        raw, review_id=text, user_id="user", business_id="item", stars="rating", text=text,
        date=when("%Y-%m-%d %H:%M:%S"))),
    "Steam, reviews": lambda f, raw: json_lines(f / "steam_reviews.json", renamed(
        raw, username="user", hours=lambda row: 1.5, product_id="item", date=when("%Y-%m-%d"), text=text),
        literal=True),
    "Steam, Australian": lambda f, raw: json_lines(f / "australian_user_reviews.json", bundles(raw), literal=True),
    "Goodreads": lambda f, raw: json_lines(f / "goodreads_interactions.json.gz", renamed(
        raw, user_id="user", book_id="item", is_read=lambda row: True, rating="rating",
        date_added=when("%a %b %d %H:%M:%S -0000 %Y"))),
    "Gowalla": lambda f, raw: lines(f / "loc-gowalla_totalCheckins.txt", [
        f"{row.user}\t{when('%Y-%m-%dT%H:%M:%SZ')(row)}\t30.2\t-97.7\t{row.item}" for row in raw.itertuples()]),
    "LastFM-1K": lambda f, raw: lines(f / "lastfm.tsv", [
        f'{row.user}\t{when("%Y-%m-%dT%H:%M:%SZ")(row)}\t{row.item}\t"Weird Al\t\t12" mix'
        for row in raw.itertuples()]),
    "HetRec": lambda f, raw: csv(f / "user_taggedartists-timestamps.dat", raw, sep="\t", userID="user", artistID="item",
                                 tagID="rating", timestamp=lambda row: row.timestamp * 1000),
    "MicroLens, Pixel": lambda f, raw: csv(
        f / "MicroLens-100k_pairs.csv", raw, userID="user", videoID="item", timestamp="timestamp"),
    "MicroLens, `pairs": lambda f, raw: lines(f / "MicroLens-100k_pairs.tsv", [
        f"{user}\t{' '.join(map(str, items))}" for user, items in sequences(numbers(raw)).items()]),
    "Taobao": lambda f, raw: lines(f / "UserBehavior.csv", [
        f"{row.user},{row.item},77,pv,{row.timestamp}" for row in raw.itertuples()]),
    "Yoochoose": lambda f, raw: lines(f / "yoochoose-clicks.dat", [
        f"{row.user},{when('%Y-%m-%dT%H:%M:%S.000Z')(row)},{row.item},0" for row in raw.itertuples()]),
    "H&M": lambda f, raw: csv(
        f / "transactions_train.csv", raw, t_dat=when("%Y-%m-%d"), customer_id="user", article_id="item",
        price=lambda row: 0.05, sales_channel_id=lambda row: 2),
    "KuaiRec": lambda f, raw: csv(f / "big_matrix.csv", raw, user_id="user", video_id="item", play_duration="rating",
                                  time=when("%Y-%m-%d %H:%M:%S.000"), date=when("%Y%m%d"), timestamp="timestamp"),
    "KuaiRand": lambda f, raw: csv(f / "log_standard.csv", raw, user_id="user", video_id="item", date=when("%Y%m%d"),
                                   hourmin=when("%H%M"), time_ms=lambda row: row.timestamp * 1000, is_click="rating"),
    "MIND": lambda f, raw: mind(f / "behaviors.tsv", raw),
    "dates": lambda f, raw: csv(f / "dates.csv", raw, user="user", item="item", time=when("%d/%m/%Y %H:%M")),
    "any CSV": lambda f, raw: csv(f / "any.csv", raw, uid="user", thing="item", when="timestamp"),
    "a CSV without": lambda f, raw: csv(f / "bare.csv", numbers(raw), header=False),
}  # fmt: skip
WHOLE_NUMBERS = ("MicroLens, `pairs", "P5", "SASRec", "MovieLens", "a CSV without", "LC-Rec", "MiniOneRec")
AS_SAMPLES = ("Amazon 2023, benchmark with", "MiniOneRec", "RecBole, split, with")


def test_every_row_has_its_file():
    assert len(ROWS) == len(WRITERS) > 30
    for row, writer in zip(ROWS, WRITERS, strict=True):
        assert row[0].startswith(writer), row


def process(folder, command, **variables):
    """Run a command of the page in `folder`, which holds the files; returns what it says."""
    world = environment(folder, LOG_DIR=str(folder / "log"), DATA_PATH=str(folder / "data"), **variables)
    for name in ("DATASET", "TARGET_BASE", "DRAFT_BASE"):
        world.pop(name)
    done = subprocess.run(
        ["bash", "-c", command.replace("script/", f"{ROOT}/script/")], cwd=folder, env=world, text=True, check=False,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("row", ROWS, ids=[writer for writer in WRITERS])
def test_a_row_of_the_page_makes_the_sequences_of_its_data(row, tmp_path):
    """By leave-one-out, so that nothing is left out: each user's items, in order, under their raw ids."""
    raw, (name, write) = ratings(), next((each, WRITERS[each]) for each in WRITERS if row[0].startswith(each))
    write(tmp_path, raw)
    split_already = name in AS_SAMPLES or "benchmark" in name or "split" in name
    output = process(tmp_path, row[1], **({} if split_already else {"SPLIT": "leave_one_out"}))
    assert "are broken" not in output
    folder = tmp_path / "data/mine"
    splits = load_splits(folder)
    users = pd.read_parquet(folder / "users.parquet")["raw_id"].tolist()
    items = pd.read_parquet(folder / "items.parquet")["raw_id"].tolist()
    expected = sequences(raw)
    if name.startswith(WHOLE_NUMBERS):
        shift = 1 if name == "P5" else 0
        expected = {
            f"{'A' if name == 'MiniOneRec' else ''}{user + shift}": [str(item + shift) for item in each]
            for user, each in sequences(numbers(raw)).items()
        }
    if splits.samples is not None:
        for split, place in zip(SPLITS, (None, -2, -1), strict=True):
            found = {
                (users[user], *(items[each] for each in (*history, item)))
                for user, history, item in splits.samples[split]
            }
            cuts = [[place] if place else range(1, len(each) - 2) for each in expected.values()]
            assert found == {
                (user, *each[: (cut if cut >= 0 else len(each) + cut) + 1])
                for (user, each), at in zip(expected.items(), cuts, strict=True) for cut in at
            }  # fmt: skip
        return
    found = {
        users[user]: [items[item] for split in SPLITS for item in splits[split][user]] for user in range(len(users))
    }
    assert found == expected
    assert all(len(splits.test[user]) == len(splits.valid[user]) == 1 for user in range(len(users)))
    if name == "LC-Rec":
        titles = pd.read_parquet(folder / "items.parquet")["title"].tolist()
        assert titles == [f"Item {item}" for item in range(26)]
        assert json.loads((folder / "mine.index.json").read_text()) == index_of(26)


def test_by_time_is_the_default_of_what_has_times(tmp_path):
    WRITERS["KuaiRand"](tmp_path, ratings())
    output = process(tmp_path, dict(ROWS)["KuaiRand"])
    assert "split time" in output
    assert re.search(r"validation from \d+ \(201[1-4]-", output)


@pytest.mark.parametrize(
    ("form", "flags"),
    [
        ("%Y%m%d", {}),
        ("%Y-%m-%dT%H:%M:%S+02:00", {}),
        ("%a %b %d %H:%M:%S -0700 %Y", {}),
        ("%B %d, %Y", {}),
        ("%m/%d/%Y %I:%M %p", {"TIME_FORMAT": "%m/%d/%Y %I:%M %p"}),
        ("%d.%m.%Y", {"TIME_FORMAT": "%d.%m.%Y"}),
    ],
)
def test_dates_are_read_as_they_are_written(tmp_path, form, flags):
    raw = ratings()
    frame = pd.DataFrame(renamed(raw, user="user", item="item", when=when(form)))
    frame.to_csv(tmp_path / "any.csv", index=False, sep=";")
    command = "INPUT=any.csv DATASET=mine bash script/process_data.sh --timestamp when"
    process(tmp_path, command, SPLIT="leave_one_out", **flags)
    found = pd.read_parquet(tmp_path / "data/mine/interactions.parquet")["timestamp"]
    hours = {"%Y-%m-%dT%H:%M:%S+02:00": -2, "%a %b %d %H:%M:%S -0700 %Y": 7}.get(form, 0)
    expected = pd.to_datetime(raw["timestamp"] + 3600 * hours, unit="s", utc=True)
    assert sorted(found) == sorted(expected)


def test_python_lines_are_read_and_never_executed(tmp_path):
    lines(tmp_path / "raw.json", ["{'user': __import__('os').system('touch ran'), 'item': 1, 'time': 1300000000}"])
    assert ast.literal_eval("{'user': 1}") == {"user": 1}
    world = environment(tmp_path, INPUT=str(tmp_path / "raw.json"), DATASET="mine")
    done = subprocess.run(["bash", "script/process_data.sh"], env=world, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert not (ROOT / "ran").exists()
