"""Files of users and histories, row by row."""

import json

import pandas as pd
import pytest

from genrec.data.histories import HistoryFile, SplitUsers, UserCount
from genrec.data.toy import make_toy
from genrec.runtime.errors import UserError

ROWS = [("u1", [3, 5]), ("7", [9]), ("u3", [1, 2, 3]), ("u4", [])]


def write(folder, form, rows=ROWS):
    path = folder / f"users{form}"
    if form == ".parquet":
        pd.DataFrame(rows, columns=["user", "history"]).to_parquet(path, row_group_size=2)
    elif form == ".csv":
        lines = [f'{user},"{", ".join(map(str, history))}"' for user, history in rows]
        path.write_text("\n".join(["user,history", *lines]) + "\n")
    else:
        path.write_text("".join(json.dumps({"history": h, "user": u, "more": 1}) + "\n" for u, h in rows))
    return path


@pytest.mark.parametrize("form", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_every_form_gives_the_same_rows_from_any_on(tmp_path, form, start):
    file = HistoryFile(write(tmp_path, form))
    assert list(file.rows(start)) == ROWS[start:]
    assert file.check(lambda history: None) == UserCount(4, numbered=False)


def test_users_of_a_split_bring_their_whole_history(tmp_path):
    """Since what was seen long ago is not to be recommended either."""
    toy = make_toy(n_items=300, n_users=60)
    user = next(iter(toy.splits.train))
    toy.splits.train[user] = list(range(60))
    toy.save(tmp_path / "toy")
    histories = dict(SplitUsers(str(tmp_path), "toy", None, "test").rows())
    assert histories[user] == [*range(60), *toy.splits.valid[user]]


def test_raw_ids_are_texts_and_numbers_are_numbers(tmp_path):
    rows = [(1, ["B01", "B02"]), (2, ["B03"])]
    assert HistoryFile(write(tmp_path, ".jsonl", rows)).check(lambda history: None).numbered
    assert list(HistoryFile(write(tmp_path, ".jsonl", rows)).rows()) == rows
    assert list(HistoryFile(write(tmp_path, ".parquet", rows)).rows()) == rows
    assert list(HistoryFile(write(tmp_path, ".csv", rows)).rows()) == [("1", ["B01", "B02"]), ("2", ["B03"])]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("users.txt", "x", "give a file of .jsonl, .json, .csv, .parquet"),
        ("users.jsonl", '{"user": 1, "history": [1]}\n{"user": 2}\n', "line 2: is no JSON object of user and history"),
        ("users.jsonl", '{"user": 1, "history": 5}\n', "row 1: needs a user and a history, a list of items"),
        ("users.jsonl", '{"user": null, "history": [5]}\n', "row 1: needs a user"),
        ("users.jsonl", "", "holds no user"),
        ("users.csv", "user,items\n1,2\n", "has no column history"),
        ("users.parquet", "no parquet", "cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        HistoryFile(path).check(lambda history: None)
    with pytest.raises(UserError, match="no such file"):
        HistoryFile(tmp_path / "other.jsonl")


def test_a_row_with_a_problem_is_named(tmp_path):
    file = HistoryFile(write(tmp_path, ".jsonl"))
    with pytest.raises(UserError, match=r"user 'u3' \(row 3\): too long"):
        file.check(lambda history: "too long" if len(history) > 2 else None)
