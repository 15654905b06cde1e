"""What was trained recommends: the table, the sweep, and what is refused."""

import json
import shutil
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from conftest import ROOT, script
from genrec.data.toy import make_toy
from genrec.runtime.errors import UserError
from specgr import run, sweep
from specgr.configuration.config import Config, read_arguments
from specgr.configuration.names import AUX, NEEDS, PLUS, SPECGR_NEIGHBOURS
from specgr.data.examples import Examples
from specgr.decoding.item_drafters import item_embeddings
from specgr.evaluation.recommenders import make
from specgr.train import open_bench
from specgr.training.loss_modules import Stage1Loss
from specgr.training.stages import STAGES, load_items, load_tiger, train
from tiny_world import CONFIG, flags
from tiny_world import run as run_training


def start(module, world, *more):
    module.main(*read_arguments(flags(world, "whole", *more), module.Flags))


def test_the_table_has_every_method_and_all_is_in_sample_and_unseen_together(world, trained, capsys):
    start(run, world, "--results", str(world / "r"), "--draft_size", "7", "--threshold", "-1e9", "--batch_size", "16")
    table = pd.read_csv(world / "r/results.csv", index_col="method")
    assert list(table.index) == list(NEEDS)
    headline = (world / "r/results.md").read_text().splitlines()[0]
    assert "SpecGR++ δ 7, γ -1e+09, β 50" in headline
    numbers = {kind: int(headline.split(f" {kind}")[0].split()[-1]) for kind in ("all", "in-sample", "unseen")}
    for metric in ("Recall@10", "NDCG@50"):
        parts = sum(numbers[kind] * table[f"{metric}_{kind.replace('-', '_')}"] for kind in ("in-sample", "unseen"))
        pd.testing.assert_series_equal(parts / numbers["all"], table[f"{metric}_all"], check_names=False)
    assert table.loc[["SpecGR++", "SpecGR++ after stage 1"], "acceptance"].eq(1).all()
    assert not table.loc["SpecGR++"].equals(table.loc["SpecGR++ after stage 1"])
    assert not table.loc["UniSRec"].equals(table.loc["SASRec_T"])
    assert table.loc["UniSRec", ["acceptance", "rounds"]].isna().all()
    assert "SpecGR_Aux" in capsys.readouterr().out
    assert json.loads((world / "r/facts.json").read_text())["settings"]["SpecGR_Aux"]["draft_size"] == 7
    with pytest.raises(UserError, match="is there already; choose another --results"):
        start(run, world, "--results", str(world / "r"))


def test_the_sweep_varies_one_parameter_at_a_time(world, trained):
    start(sweep, world, "--draft_sizes", "3,9", "--thresholds", "-9", "--beams", "4", "--max_eval_steps", "30",
          "--results", str(world / "s"))  # fmt: skip
    table = pd.read_csv(world / "s/sweep.csv")
    assert len(table) == 4 * 4 + 1
    drafted = table[(table["method"] == "SpecGR++") & (table["varied"] == "draft_size")]
    assert drafted["draft_size"].tolist() == [3, 9]
    assert (drafted["num_beams"] == 50).all()
    assert (world / "s/sweep.png").stat().st_size > 10_000
    assert set(json.loads((world / "s/facts.json").read_text())["trained"]) == {"tiger", "unisrec", "stage1", "stage2"}


def test_requests_without_unseen_targets_have_a_table_and_a_sweep_all_the_same(tmp_path):
    make_toy(n_items=60, n_users=200).save(tmp_path / "data/toy")
    (tmp_path / "config.yaml").write_text(CONFIG)
    own = ("--digits", "64", "--embeddings", "null", "--methods", SPECGR_NEIGHBOURS, "--max_eval_steps", "30")
    run_training(tmp_path, "whole", *own[:4], "--stages", "tiger")
    start(run, tmp_path, *own, "--results", str(tmp_path / "r"))
    row = pd.read_csv(tmp_path / "r/results.csv").iloc[0]
    assert row[["Recall@10_unseen", "NDCG@50_unseen"]].isna().all()
    assert row["NDCG@50_all"] == row["NDCG@50_in_sample"]
    assert ", 0 unseen requests" in (tmp_path / "r/results.md").read_text()
    varied = ("--draft_sizes", "3,9", "--thresholds", "-9", "--beams", "4")
    start(sweep, tmp_path, *own, *varied, "--results", str(tmp_path / "s"))
    assert pd.read_csv(tmp_path / "s/sweep.csv")["NDCG@50_unseen"].isna().all()


def test_the_sweep_is_of_methods_that_draft(world, trained):
    with pytest.raises(UserError, match="--methods TIGER: choose from SpecGR neighbours, SpecGR_Aux"):
        start(sweep, world, "--methods", "SpecGR++,TIGER", "--results", str(world / "none"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--eval_mode", "train"), "--eval_mode train: choose from valid, test"),
        (("--methods", "GRU"), "--methods GRU: choose from TIGER"),
        (("--draft_size", "0"), "--draft_size 0: must be at least 1"),
        (("--max_eval_steps", "0"), "--max_eval_steps 0: must be above 0"),
        (("--max_eval_steps", ".nan"), "--max_eval_steps nan: must be"),
        (("--max_eval_steps", ".inf"), "--max_eval_steps inf: must be"),
        (("--embeddings", "null", "--methods", "UniSRec"), "embeddings is not set"),
        (("--digits", "31"), "trained on other data or identifiers"),
        (
            ("--output_dir", "elsewhere"),
            "not there, or not finished; .* script/specgr_train",
        ),
        (("--beams", "3"), "unknown flag --beams"),
    ],
)
def test_what_cannot_be_is_refused_by_name(world, trained, more, message):
    with pytest.raises(UserError, match=message):
        start(run, world, "--results", str(world / "refused"), *more)
    assert not (world / "refused").exists()


def test_items_that_joined_the_index_after_training_are_recommended(world, trained, tmp_path):
    shutil.copytree(world / "data", tmp_path / "data")
    index = tmp_path / "data/toy/toy.index.json"
    identifiers = json.loads(index.read_text())
    identifiers |= {"150": identifiers["3"], "151": identifiers["149"]}  # on their codes, with digits of their own
    index.write_text(json.dumps(identifiers))
    vectors = np.load(world / "data/toy/embeddings.npy")
    np.save(tmp_path / "embeddings.npy", np.concatenate([vectors, vectors[[3, 149]]]))
    late = ("--data_path", str(tmp_path / "data"), "--embeddings", str(tmp_path / "embeddings.npy"))
    config, _ = read_arguments(flags(world, "whole", *late), run.Flags)
    bench = open_bench(config)
    items = load_items(bench, "stage2")
    torch.testing.assert_close(items[150:], item_embeddings(load_tiger(bench, "stage1"), bench.codes)[150:])
    assert torch.equal(items[:150], load_file(trained / "stage2/items.safetensors")["items"])
    for name in (AUX, PLUS):
        found = make(bench, name).recommend(bench.data.test.histories[:2], 152).items
        assert torch.equal(found.sort(-1).values, torch.arange(152).expand(2, -1)), name


def test_other_text_embeddings_than_unisrec_was_trained_on_are_refused(world, trained, tmp_path):
    np.save(tmp_path / "other.npy", np.load(world / "data/toy/embeddings.npy")[::-1])
    with pytest.raises(UserError, match=r"unisrec: was trained on other text embeddings than .*other\.npy"):
        start(run, world, "--embeddings", str(tmp_path / "other.npy"), "--results", str(world / "refused"))


def test_a_split_without_histories_is_refused(world, trained):
    bench = open_bench(read_arguments(flags(world, "whole"), run.Flags)[0])
    nothing = Examples.of([], 4)
    with pytest.raises(UserError, match="--eval_mode test: no sample of this split of toy has a history"):
        run.requests_of(replace(bench, data=replace(bench.data, test=nothing)), "test", 1.0)
    with pytest.raises(UserError, match="toy: no sample of valid has a history"):
        train(replace(bench, data=replace(bench.data, valid=nothing)), STAGES, overwrite=False)


@pytest.mark.parametrize(
    ("stage", "more", "message"),
    [
        ("specgr_inference", (), "output/toy/tiger: not there"),
        ("specgr_train", ("--data_path", "elsewhere"), "elsewhere/toy: no such data set folder"),
    ],
)
def test_the_scripts_take_the_variables_of_all_scripts_and_a_flag_wins(world, tmp_path, stage, more, message):
    at = {"CONFIG": str(world / "config.yaml"), "DATA_PATH": str(world / "data"), "NUM_PROCESSES": "1"}
    output, code = script(stage, tmp_path, *more, **at)
    assert (code, message in output) == (2, True), output


@pytest.mark.parametrize(
    ("without", "untaught", "taught"), [("lambda_emb", "projection", "t5.dec"), ("lambda_gen", "t5.dec", "projection")]
)
def test_a_loss_of_weight_0_teaches_nothing(world, without, untaught, taught):
    config, _ = read_arguments(flags(world, "none", f"--stage1.{without}", "0"), run.Flags)
    bench = open_bench(config, [])
    objective = Stage1Loss(bench.new_tiger(), bench.codes, bench.data.train, config.stage1)
    objective(torch.arange(8)).sum().backward()
    weights = objective.model.named_parameters()
    moved = [name for name, weight in weights if weight.grad is not None and weight.grad.any()]
    assert any(name.startswith(taught) for name in moved)
    assert not any(name.startswith(untaught) for name in moved)


def test_bos_and_eos_are_read_by_all_that_was_trained_with_them_and_refused_by_the_rest(world, trained):
    ours = ("--bos_eos", "true", "--methods", "SpecGR++ after stage 1,TIGER", "--max_eval_steps", "30")
    with pytest.raises(UserError, match="was trained on other data or identifiers"):
        start(run, world, *ours, "--results", str(world / "bos"))
    with pytest.raises(UserError, match="was made with --bos_eos False, not True"):
        run_training(world, "whole", "--stages", "tiger", "--bos_eos", "true")
    run_training(world, "bos", "--stages", "tiger,stage1", "--bos_eos", "true")
    run.main(*read_arguments(flags(world, "bos", *ours, "--results", str(world / "bos/r")), run.Flags))
    assert len(pd.read_csv(world / "bos/r/results.csv")) == 2


def test_every_key_of_the_configuration_is_read():
    sources = "".join(path.read_text() for path in (ROOT / "code/specgr").rglob("*.py"))
    keys = [one.name for one in fields(Config)]
    assert [key for key in keys if f"config.{key}" not in sources and key not in SECTIONS] == []


SECTIONS = ("train_tiger", "train_unisrec", "train_sasrec_t", "stage1", "stage2")  # by `stages.plan_of`
