"""The benchmark of batches: equal lists first, then a table."""

import json

import pandas as pd
import pytest
import torch

from genrec.runtime.errors import UserError
from specgr import speed
from specgr.configuration.config import read_arguments
from specgr.decoding.ranked_lists import RankedLists
from tiny_world import flags

SMALL = ("--max_eval_steps", "6", "--repetitions", "2")


def start(world, output, *more):
    speed.main(*read_arguments(flags(world, output, *SMALL, *more), speed.Flags))


@pytest.mark.parametrize(("output", "weights"), [("whole", "trained"), ("nothing", "random weights of seed 0")])
def test_the_table_has_every_batch_size_and_says_whose_weights_were_timed(world, trained, output, weights):
    folder = world / f"speed-{output}"
    start(world, output, "--batch_sizes", "1,4", "--k", "5,10,5", "--results", str(folder))
    table = pd.read_csv(folder / "results.csv")
    names = ["SpecGR_Aux", "SpecGR++", "TIGER constrained"]
    rows = [[name, k, size] for k in (5, 10) for name in names for size in (1, 4)]
    assert table[["method", "K", "batch"]].values.tolist() == rows
    assert (table.loc[table["batch"] == 1, "times_batch_1"] == 1).all()
    assert (table["lowest"] <= table["requests_per_s"]).all()
    assert (table["requests_per_s"] <= table["highest"]).all()
    assert (table["rounds"].isna() == (table["method"] == "TIGER constrained")).all()
    assert f", {weights}" in (folder / "results.md").read_text().splitlines()[0]
    assert json.loads((folder / "facts.json").read_text())["settings"]["SpecGR++"]["draft_size"] == 20


class Answers:
    """Lists by request, changed for batches of more than one by `change`."""

    def __init__(self, change):
        self.change = change

    def recommend(self, histories, k):
        items, scores = histories + torch.arange(k), -torch.arange(k, dtype=torch.float).repeat(len(histories), 1)
        if len(histories) > 1:
            items, scores = self.change(histories, items.clone(), scores)
        return RankedLists(items, scores)


def swapped(histories, items, scores):
    """Two items of the list of request 7 change places."""
    seven = (histories == 7)[:, 0]
    items[seven] = items[seven][:, [1, 0, 2]]
    return items, scores


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda histories, items, scores: (items, scores + 1e-6), None),
        (swapped, None),
        (lambda histories, items, scores: (items.flip(1), scores), "100 of 100 lists hold other items"),
        (lambda histories, items, scores: (items, scores + 0.1), "0 of 100 lists hold .* 100 have other scores"),
    ],
    ids=["rounding", "a tie", "other items", "other scores"],
)
def test_lists_that_differ_by_more_than_a_tie_are_not_timed(change, error):
    requests = torch.arange(100)[:, None]
    batches = {size: [(part[:, 0].tolist(), part) for part in requests.flip(0).split(size)] for size in (1, 8)}
    if error:
        with pytest.raises(RuntimeError, match=f"some, batch size 8: {error}"):
            speed.compare("some", Answers(change), batches, 3)
    else:
        assert speed.compare("some", Answers(change), batches, 3)["ties"] == (1 if change is swapped else 0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--batch_sizes", "8,64"), "--batch_sizes 8,64: starts with 1"),
        (("--repetitions", "0"), "--repetitions 0: must be at least 1"),
        (("--eval_mode", "train"), "--eval_mode train: choose from"),
        (("--methods", "GRU"), "--methods GRU: choose from TIGER"),
        (("--embeddings", "null", "--methods", "SpecGR_Aux", "--output_dir", "none"), "embeddings is not set"),
    ],
)
def test_what_cannot_be_timed_is_refused_by_name(world, trained, more, message):
    with pytest.raises(UserError, match=message):
        start(world, "whole", "--results", str(world / "refused"), *more)
    assert not (world / "refused").exists()
