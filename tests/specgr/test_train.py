"""All trainings on a tiny toy: killed and resumed, in two processes, refused."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import ROOT
from genrec.runtime.errors import UserError
from specgr.configuration.config import ContrastivePlan, TrainingPlan
from specgr.configuration.plans import check_division, over_processes
from specgr.data.examples import Examples
from specgr.training.fitting import batch_rows, epoch_steps, fit_weights, learning_rate, new_accelerator, step_rows
from specgr.training.loss_modules import TigerLoss
from specgr.training.stages import STAGES
from tiny_world import flags, run


def worker(world, kind, output, *more, processes=1):
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    return subprocess.run(
        [sys.executable, *start, Path(__file__).with_name("train_worker.py"), kind, *flags(world, output, *more)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "code"), "OMP_NUM_THREADS": "1"}, text=True, capture_output=True,
        check=False,
    )  # fmt: skip


def assert_same_weights(one, other, **tolerance):
    weights, others = (load_file(folder / "model/model.safetensors") for folder in (one, other))
    assert weights.keys() == others.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], **tolerance)


def test_each_stage_leaves_its_weights_facts_and_item_embeddings(trained):
    assert sorted(path.name for path in trained.iterdir()) == ["sasrec_t", "stage1", "stage2", "tiger", "unisrec"]
    facts = json.loads((trained / "stage2/facts.json").read_text())
    assert facts["arguments"]["stage2.batch_size"] == 16
    assert [log["step"] for log in facts["results"]["history"]] == [0, 2, 4]
    items = [load_file(trained / stage / "items.safetensors")["items"] for stage in ("stage1", "stage2")]
    assert torch.equal(*items), "stage 2 leaves the item embeddings as they are"
    torch.testing.assert_close(items[0].norm(dim=-1), torch.ones(150))


@pytest.mark.parametrize("stage", ["tiger", *(pytest.param(s, marks=pytest.mark.slow) for s in STAGES[1:])])
def test_a_training_killed_after_a_checkpoint_ends_as_it_would_have(world, trained, stage):
    output = world / f"killed-{stage}/toy"
    for before in STAGES[: STAGES.index(stage)]:
        shutil.copytree(trained / before, output / before)
    done = worker(world, "killed", output.parent.name, "--stages", stage)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (kept,) = (output / f"{stage}.work").glob("check*")
    assert not (output / stage).exists()
    (output / f".{stage}.partial-{platform.node().replace('-', '_')}-{2**22 + 1}").mkdir()  # of a process that is gone
    (output / f"{stage}.work/.{kept.name}.partial-{platform.node().replace('-', '_')}-{2**22 + 1}").mkdir()
    assert_same_weights(run(world, output.parent.name, "--stages", stage) / stage, trained / stage, atol=0, rtol=0)
    left = [path.name for path in output.iterdir()]
    assert sorted(left) == sorted(STAGES[: STAGES.index(stage) + 1]), "no work folder, no partial folder"


def test_the_weights_of_the_start_are_kept_if_none_is_better(codes, tiger, tmp_path):
    examples = Examples.of([([0, 1], 2), ([3], 4)], 2)
    before = {name: weight.clone() for name, weight in tiger.state_dict().items()}
    scores, trained = iter([0.3, 0.2, 0.1]), []

    def validate():
        trained.append(tiger.t5.shared.weight.detach().clone())
        return next(scores)

    plan = TrainingPlan(steps=2, batch_size=2, eval_steps=1)
    state = fit_weights(TigerLoss(tiger, codes, examples), plan, 0, tmp_path, new_accelerator(), validate)
    assert (state.best, state.best_step) == (0.3, 0)
    assert not torch.equal(trained[0], trained[2]), "it did train"
    for name, weight in tiger.state_dict().items():
        assert torch.equal(weight, before[name]), name


@pytest.mark.slow
def test_two_processes_train_what_one_does(world):
    alike = ("--tiger.dropout", "0")
    done = worker(world, "whole", "two", *alike, processes=2)
    assert done.returncode == 0, done.stderr
    one = run(world, "one", *alike)
    for stage in STAGES:
        if stage != "unisrec":  # its noise and dropout are each process's own
            assert_same_weights(world / "two/toy" / stage, one / stage, atol=2e-4, rtol=1e-3)


def test_what_is_done_is_not_done_again_and_not_with_other_settings(world, trained, caplog):
    before = (trained / "tiger/facts.json").stat().st_mtime_ns
    run(world, "whole")
    assert (trained / "tiger/facts.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"--train_tiger\.learning_rate 0\.003, not 0\.1"):
        run(world, "whole", "--train_tiger.learning_rate", "0.1")


def test_overwrite_removes_only_what_was_made_otherwise(world, trained):
    copy = world / "overwritten/toy"
    shutil.copytree(trained, copy)
    run(world, "overwritten", "--stage2.learning_rate", "2e-3", "--overwrite")
    for stage in STAGES:
        same = (copy / stage / "facts.json").read_text() == (trained / stage / "facts.json").read_text()
        assert same == (stage != "stage2"), stage


def test_any_seed_will_do(world):
    assert (run(world, "seed", "--stages", "tiger", "--seed", str(2**31 - 1)) / "tiger/model").is_dir()


def test_a_training_that_has_lost_itself_stops(world):
    with pytest.raises(UserError, match=r"after step 3 not all weights are numbers .* lower learning_rate, 1e\+30"):
        run(world, "lost", "--stages", "tiger", "--train_tiger.learning_rate", "1e30")


def test_a_stage_that_starts_from_another_tiger_is_refused(world, trained):
    with pytest.raises(UserError, match=r"stage1: was trained with --tiger\.layers 1, not 2"):
        run(world, "whole", "--stages", "stage2", "--tiger.layers", "2")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--stages", "tigger"), "--stages tigger: choose from tiger, unisrec, sasrec_t"),
        (("--stages", "stage2"), "stage1: not there, or not finished"),
        (("--stages", "tiger,stage2"), "stage1: not there, or not finished"),
        (("--embeddings", "null", "--stages", "tiger,unisrec"), "unisrec needs text embeddings"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(world, more, message):
    with pytest.raises(UserError, match=message):
        run(world, "refused", *more)
    assert not (world / "refused").exists()


def test_an_epoch_has_every_row_and_its_last_batch_is_full():
    rows = torch.cat([batch_rows(10, 4, step, seed=1) for step in range(3)])
    assert sorted(rows[:10].tolist()) == list(range(10))
    assert torch.equal(rows[10:], rows[:2])
    assert not torch.equal(rows, torch.cat([batch_rows(10, 4, step, seed=1) for step in range(3, 6)]))
    # torch's generator reads 32 bits of a seed, in which another seed must show.
    assert not torch.equal(rows, torch.cat([batch_rows(10, 4, step, seed=2) for step in range(3)]))


def test_the_generation_loss_has_a_batch_of_its_own_and_an_epoch_is_what_the_smaller_batch_takes():
    plan = ContrastivePlan(epochs=1, batch_size=8, generation_batch_size=3)
    assert (epoch_steps(20, plan), epoch_steps(20, TrainingPlan(epochs=1, batch_size=8))) == (7, 3)
    steps = [step_rows(20, plan, step, seed=1) for step in range(7)]
    assert [(len(rows), len(generated)) for rows, generated in steps] == [(8, 3)] * 7
    generated = torch.cat([generated for _, generated in steps])
    assert set(generated[:20].tolist()) == set(range(20)), "all samples are generated once an epoch"
    assert not torch.equal(generated[:8], steps[0][0]), "drawn apart from the other loss"
    assert all(torch.equal(*pair) for pair in zip(step_rows(20, plan, 3, seed=1), steps[3], strict=True))
    assert [len(rows) for rows in step_rows(20, TrainingPlan(epochs=1, batch_size=8), 0, seed=1)] == [8]


def test_a_plan_of_one_process_is_multiplied_as_in_the_release():
    plan = ContrastivePlan(
        epochs=1, batch_size=8, generation_batch_size=2, learning_rate=1e-3, warmup_steps=100, per_process=True
    )
    shared = over_processes(plan, 4)
    assert (shared.batch_size, shared.generation_batch_size, shared.warmup_steps) == (32, 8, 25)
    assert shared.learning_rate == pytest.approx(4e-3)
    assert over_processes(shared, 4) == shared
    assert over_processes(TrainingPlan(steps=1, batch_size=8), 4).batch_size == 8
    with pytest.raises(UserError, match="batch_size 6 cannot be shared by 4 processes"):
        check_division(over_processes(TrainingPlan(steps=1, batch_size=6), 4), "stage1", 4)


class Steep(torch.nn.Module):
    """A loss whose gradient is a hundred times the weights' size."""

    parts = ("steep",)

    def __init__(self):
        super().__init__()
        self.model, self.examples = torch.nn.Linear(4, 1, bias=False), range(8)
        torch.nn.init.ones_(self.model.weight)

    def forward(self, rows):
        return 100 * self.model(torch.ones(len(rows), 4)).mean()[None]


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_gradients_are_clipped_where_the_plan_says_so(tmp_path, monkeypatch, clip):
    norms, step = [], torch.optim.AdamW.step

    def seen(self, *args, **kwargs):
        (weight,) = self.param_groups[0]["params"]
        norms.append(weight.grad.norm().item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", seen)
    fit_weights(Steep(), TrainingPlan(steps=3, batch_size=2, clip_norm=clip), 0, tmp_path, new_accelerator(), lambda: 0)
    assert norms == pytest.approx([clip or 200] * 3, rel=1e-3)


def test_a_stage_of_specgr_plus_plus_trains_in_bfloat16_too(world):
    run(world, "bf16", "--stages", "tiger,stage1", "--stage1.bf16", "true")
    results = json.loads((world / "bf16/toy/stage1/facts.json").read_text())["results"]
    assert [log["step"] for log in results["history"]] == [0, 2, 4]
    weights = load_file(world / "bf16/toy/stage1/model/model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    plan = TrainingPlan(steps=10, learning_rate=1.0, warmup_steps=2)
    assert [round(learning_rate(plan, step, 10), 3) for step in (0, 1, 2, 6, 9)] == [0.5, 1.0, 1.0, 0.5, 0.038]
    assert learning_rate(TrainingPlan(steps=10, learning_rate=1.0, cosine=False), 9, 10) == 1.0
