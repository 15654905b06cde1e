"""The comparison of drafts: its sums and intervals by hand, and the one command that makes it."""

import re
from itertools import product

import numpy as np
import pandas as pd
import pytest

from atspeed.benchmark.comparison import (
    by_draft,
    confidence,
    draft_name,
    of_drafts,
    over_seeds,
    ranking,
    save_comparison,
)
from atspeed.benchmark.methods import BASELINE, GENERATE
from atspeed.benchmark.significance import differences, intervals
from conftest import UNSET, script, succeed
from genrec.data.toy import make_toy
from genrec.runtime.artefacts import already_done


def row(method, accepted, recall, request=0, target="a", width=5):
    measured = {"accepted levels": accepted, "target calls": 4 - (accepted or 0)}
    return {"K": width, "method": method, "request": request, "target": target, "Recall@K": recall,
            "NDCG@K": recall / 2, **measured}  # fmt: skip


def times_of(users):
    methods = users[["target", "K", "method"]].drop_duplicates()
    return methods.assign(**{"speed-up": 2.0, "over gamma 0": 0.5})


def test_users_and_seeds_are_averaged_and_lists_are_set_against_those_of_generate_for_the_same_users():
    users = pd.DataFrame(
        [
            row(GENERATE, None, 0.5), row(BASELINE, None, 0.5), row(GENERATE, None, 0, 1), row(BASELINE, None, 0, 1),
            row("SFTModel 0 strict", 0.5, 0.5), row("SFTModel 0 strict", 1.5, 0, 1),
            row("SFTModel 1 strict", 2.0, 0.5), row("SFTModel 1 strict", 2.0, 0, 1),
            row("SFTModel 0 relaxed", 2.0, 0.25), row("SFTModel 1 relaxed", 3.0, 0.75),  # of one of the users
            row("SeqKDModel-level 0 strict", 1.75, 0.5), row("SeqKDModel-level 0 strict", 1.75, 0, 1),
        ]
    )  # fmt: skip
    drafts = by_draft(of_drafts(users), times_of(users))
    assert len(drafts) == 5
    assert drafts["Recall change"].tolist() == [0, 0, -0.25, 0.25, 0]
    table = over_seeds(drafts).set_index(["verification", "draft"])
    strict = table.loc[("strict", "SFTModel"), ["accepted levels", "± levels", "target calls", "speed-up"]]
    assert strict.tolist() == pytest.approx([1.5, 2**-0.5, 2.5, 2.0])
    assert table.loc[("relaxed", "SFTModel"), ["accepted levels", "Recall change", "NDCG@K"]].tolist() == [2.5, 0, 0.25]
    assert ranking(over_seeds(drafts)) == "SeqKDModel-level 1.75, SFTModel 1.50"


def test_the_interval_of_a_mean_is_that_of_its_standard_error_and_of_a_pair_that_of_its_differences():
    random = np.random.default_rng(0)
    user = random.normal(0, 1, 400)  # what is hard for one is hard for all
    values = pd.DataFrame({"a": user, "b": user + 0.1 + random.normal(0, 0.1, 400), "c": random.normal(0, 1, 400)})
    found, error = intervals(values), values.sem()
    assert (found["mean"] == values.mean()).all()
    assert found["low"].to_numpy() == pytest.approx((values.mean() - 1.96 * error).to_numpy(), abs=0.01)
    assert found["high"].to_numpy() == pytest.approx((values.mean() + 1.96 * error).to_numpy(), abs=0.01)
    paired = differences(values).set_index(["better", "than"])
    assert len(paired) == 3
    assert paired.loc[("b", "a"), "low"] == pytest.approx(0.09, abs=0.005), "far within what b alone varies"
    assert found.loc["b", "low"] < values["a"].mean() < found.loc["b", "high"]
    assert (paired["low"] <= paired["mean"]).all()
    assert differences(values[["a"]]).empty


def test_a_difference_is_taken_over_targets_and_seeds_of_the_same_users(tmp_path):
    random, rows = np.random.default_rng(1), []
    for target, request, width in product("ab", range(200), (1, 5)):
        hard = random.normal()
        rows += [row(name, None, 0.5, request, target, width) for name in (GENERATE, BASELINE)]
        for seed, (name, better) in product(range(3), (("SFTModel", 0.0), ("AtSpeedSModel", 0.05))):
            said = hard + better + random.normal(0, 0.1)
            rows.append(row(f"{draft_name(name, seed)} strict", said, 0.5, request, target, width))
    users = pd.DataFrame(rows)
    spread, better = confidence(of_drafts(users))
    assert better["K"].tolist() == [1, 5, "mean"]
    assert set(better["better"]) == {"AtSpeedSModel"}
    assert set(better["of seeds"]) <= {"5 of 6", "6 of 6"}
    last = better.iloc[-1]
    assert 0 < last["low"] < last["mean"] < last["high"] < 0.1
    assert last["mean"] == pytest.approx(0.05, abs=0.02)
    assert spread[spread["measure"] == "Recall change"][["mean", "low", "high"]].abs().to_numpy().max() == 0
    page = save_comparison(tmp_path, users, times_of(users), "headline", "verdict")
    assert "| AtSpeedSModel | SFTModel |" in page
    assert re.search(r"headline\n\nverdict\n\nstrict, 200 users; paper", page)
    assert pd.read_parquet(tmp_path / "users.parquet").equals(users)


SETTINGS = UNSET | {"DATASET": "beauty", "DRY_RUN": "true", "MODEL_CLASSES": "SFTModel AtSpeedSModel"}


def test_a_dry_run_prints_every_command_and_runs_none(tmp_path):
    (tmp_path / "data").mkdir()
    bases = {"PRESET": "paper", "TARGET_BASE": "big", "DRAFT_BASE": "small"}
    grid = {"ALIGNMENT_OVER": "trie level", "SEEDS": "0 1", "ALPHAS": "0.5 0.7", "WDS": "0.1", "TARGET_SEEDS": "3 4"}
    output = succeed("reproduce", tmp_path, **(SETTINGS | bases | grid))
    commands = [line for line in output.splitlines() if not line.startswith("==") and "validation says" not in line]
    called = [re.search(r"script/(\w+)\.sh|-m atspeed ([\w-]+)", line)[0] for line in commands]
    trainings = [line for line in commands if "script/train.sh" in line]
    assert len(called) == 2 * 4 + len(trainings) + 1
    assert len(set(trainings)) == 2 * (2 + 2 * (2 + 1)), "SFTModel has no alpha; the first seed is searched over"
    target, draft = commands[0], trainings[0]
    for said in ("FULL=false", "LEARNING_RATE=1e-4", "BATCH_SIZE=256", "EPOCHS=20", "SEED=3", "TARGET_BASE=big"):
        assert f" {said} " in target
    for said in ("LEARNING_RATE=1e-3", "BATCH_SIZE=64", "EPOCHS=20", "WARMUP_STEPS=200", "DRAFT_BASE=small"):
        assert f" {said} " in draft
    assert all(line.startswith("DATASET=beauty DATA_PATH=") for line in commands)
    assert sum("ALIGNMENT_OVER=level" in line for line in trainings) == 2 * (2 + 2)
    assert all(f"target-{seed}/beauty/draft-AtSpeedSModel-level-alpha0.5-1" in output for seed in (3, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PRESET": "large"}, "PRESET=large: choose small or paper"),
        ({"PRESET": "paper", "TARGET_BASE": "big"}, "set TARGET_BASE and DRAFT_BASE"),
        ({"LEARNING_RATE": "1e-3"}, "set TARGET_LEARNING_RATE, DRAFT_LEARNING_RATE or both"),
        ({"ALIGNMENT_OVER": "trie levels"}, "choose from trie, level and vocabulary"),
        ({"DRAFT_EPOCH": "3"}, "did you mean DRAFT_EPOCHS?"),
    ],
)
def test_settings_that_are_not_clear_are_refused(tmp_path, variables, message):
    output, code = script("reproduce", tmp_path, **(SETTINGS | variables))
    assert (code, message in output) == (2, True), output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_one_command_makes_the_comparison_and_goes_on_where_it_stopped(tmp_path):
    make_toy(n_items=300, n_users=60).save(tmp_path / "data" / "toy")
    options = {"MODEL_CLASSES": "SFTModel AtSpeedSModel", "TARGET_EPOCHS": "1", "DRAFT_EPOCHS": "1", "TEST_USERS": "4"}
    options |= UNSET | {"TARGET_SHAPE": "micro", "BASELINES": "popularity"}
    options |= {"TARGET_SEEDS": "0 1", "ALIGNMENT_OVER": "trie level", "DRAWS": "3", "DRAWN_USERS": "2"}
    output = succeed("reproduce", tmp_path, **options)
    assert output.count("8 of 8 lists identical for all methods; 0 differ") == 2 + 2  # two targets, and their table
    (combined,) = (tmp_path / "output" / "toy" / "comparison").iterdir()
    rows = pd.read_csv(combined / "comparison.csv")
    assert len(rows) == 2 * 2 * 3 * 2  # targets, verifications, drafts, K
    assert rows[rows["verification"] == "strict"]["accepted_levels"].between(0, 3).all()
    assert set(rows["draft"]) == {"SFTModel", "AtSpeedSModel", "AtSpeedSModel-level"}
    users = pd.read_parquet(combined / "users.parquet")
    drawn = users["method"].str.endswith("relaxed")
    assert (users[drawn]["request"].nunique(), users[~drawn]["request"].nunique()) == (2, 4)
    assert (combined / "comparison.png").read_bytes().startswith(b"\x89PNG")
    again = succeed("reproduce", tmp_path, **options)
    assert again.count("done already") == 2 * (1 + 2 + 3 + 1 + 1) + 1, "nothing is done twice"
    (compared,) = (tmp_path / "output" / "target-1" / "toy" / "comparison").iterdir()
    work = compared.with_name(f"{compared.name}.work")
    already_done(compared, work, "compare", {}, overwrite=True)  # removes it, and is at work now
    refused = {work: "another run is at work there", compared: "is a file, and a folder is to be written"}
    for place, said in refused.items():
        if place == compared:
            place.touch()
        output, code = script("reproduce", tmp_path, **options)
        assert (code, f"error: {place}: {said}" in output) == (2, True), output
