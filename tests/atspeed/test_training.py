"""Training does what each objective is for, keeps what is selected by, and resumes."""

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import TrainerState
from transformers.training_args import ParallelMode

from atspeed.data.samples import collate
from atspeed.training.alignment import Alignment, DataPolicy
from atspeed.training.objectives import MODEL_CLASSES, TEACHER, make_objective
from atspeed.training.resume import WholeCheckpoints, last_checkpoint
from atspeed.training.selection import Selection
from atspeed.training.trainer import Schedule, fit, training_arguments
from atspeed.tree_logits import tree_logits
from conftest import tiny_llama
from genrec.runtime.errors import UserError


def schedule_of(**changes):
    return Schedule(
        **{
            "epochs": 20, "batch_size": 16, "micro_batch_size": 8, "learning_rate": 1e-2, "weight_decay": 0.0,
            "warmup_steps": 0, "patience": 20, "seed": 1, "report_to": "none",
        } | changes
    )  # fmt: skip


def accepted(drafter, selection):
    levels, _, requests = selection.measure(drafter, batch_size=16).tolist()
    return levels / requests


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_every_objective_trains_and_alignment_on_beams_raises_acceptance(taught, tmp_path, model_class):
    target, trie, samples = taught
    drafter, selection = tiny_llama(7, 1), Selection(target, trie, samples.prompts, width=5)
    before = accepted(drafter, selection)
    alignment = Alignment(make_objective(model_class, 5), trie, alpha=0.9)
    results = fit(drafter, alignment, samples, samples, tmp_path, schedule_of(), world=1)
    batch, default_prefix = collate([samples[i] for i in range(len(samples))]), alignment.objective.default_prefix
    with torch.no_grad():
        targets = DataPolicy().targets(default_prefix, alignment, drafter, batch) if default_prefix else None
        tree = tree_logits(
            drafter.eval(), batch["input_ids"], batch["attention_mask"], batch["item"], targets and targets.beams
        )
        losses = alignment.losses(tree, batch["item"], targets)
    assert losses.total.mean().item() == pytest.approx(results["eval_loss"], rel=1e-3), "the best weights"
    best = next(log for log in results["history"] if log.get("eval_loss") == results["eval_loss"])
    assert best["eval_recommendation_loss"] == pytest.approx(losses.recommend.mean().item(), rel=1e-3)
    for level, loss in enumerate(losses.levels.mean(0).tolist()):
        assert best[f"eval_alignment_loss_level_{level}"] == pytest.approx(loss, rel=1e-3)
    if default_prefix == TEACHER:  # the true items of this test are random: nothing to learn from them
        assert accepted(drafter, selection) > before


@pytest.mark.parametrize("select_by", ["accepted", "eval_loss"])
def test_the_best_weights_are_those_of_the_best_epoch_by_what_selects(taught, tmp_path, select_by):
    target, trie, samples = taught
    drafter, selection = tiny_llama(7, 1), Selection(target, trie, samples.prompts[:24], width=5)
    alignment, schedule = Alignment(make_objective("SFTModel")), schedule_of(patience=3, select_by=select_by)
    results = fit(drafter, alignment, samples, samples, tmp_path, schedule, 1, selection=selection)
    said = [log for log in results["history"] if "eval_loss" in log]
    key = (lambda log: -log["eval_accepted"]) if select_by == "accepted" else (lambda log: log["eval_loss"])
    best = min(said, key=key)
    assert best["epoch"] == results["best_epoch"]
    assert accepted(drafter, selection) == pytest.approx(best["eval_accepted"])
    assert best["eval_target_calls"] == results["eval_target_calls"]
    if select_by == "accepted":  # the true items are random: fitting them is no help, and so is more of it
        assert results["epochs"] == best["epoch"] + 3 < 20, "it stops early"


class Power(Exception):
    """It fails."""


class Failing(Selection):
    """Decodes as any, until the power fails at the third evaluation."""

    def measure(self, *arguments):
        object.__setattr__(self, "evaluations", getattr(self, "evaluations", 0) + 1)
        if self.evaluations == 3:
            raise Power
        return super().measure(*arguments)


def test_training_on_own_beams_resumes_to_the_same_weights_and_stops_at_the_same_epoch(taught, tmp_path):
    target, trie, samples = taught
    policy = DataPolicy(r_original=0.3, r_student=0.4, width=5, target=target)
    alignment, schedule = (
        Alignment(make_objective("AtSpeedRModel"), trie, 0.9),
        schedule_of(epochs=6, patience=2, gradient_checkpointing=True),
    )
    weights, epochs = [], []
    for name, kinds in (("whole", [Selection]), ("resumed", [Failing, Selection])):
        for kind in kinds:
            drafter, selection = tiny_llama(7, 1), kind(target, trie, samples.prompts[:16], 5)
            try:
                results = fit(drafter, alignment, samples, samples, tmp_path / name, schedule, 1, policy, selection)
            except Power:
                assert last_checkpoint(tmp_path / name).name == "checkpoint-6"
        weights.append(torch.cat([weight.flatten() for weight in drafter.parameters()]))
        epochs.append((results["epochs"], results["best_epoch"]))
    assert epochs[0] == epochs[1]
    torch.testing.assert_close(*weights, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("damaged", "best", "expected"),
    [((), 1, 3), ((3,), 1, 2), ((1,), 1, None), ((3, 2), 1, 1), ((3,), 2, 2), ((2,), 2, 1), ((1,), 3, 3)],
)
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "mark"])
def test_a_damaged_checkpoint_is_left_out_and_said(tmp_path, caplog, damaged, best, expected, damage):
    """Of checkpoints 1, 2 and 3, in which `best` is the best from then on, and the first until then."""
    for step in (1, 2, 3):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        best_then = tmp_path / f"checkpoint-{best if step >= best else 1}"
        TrainerState(global_step=step, best_model_checkpoint=str(best_then)).save_to_json(folder / "trainer_state.json")
        (folder / "optimizer.pt").write_bytes(b"state")
        WholeCheckpoints.mark(folder)
    (tmp_path / "checkpoint-4").mkdir()  # killed half-written
    for step in damaged:
        folder = tmp_path / f"checkpoint-{step}"
        if damage == "missing":
            (folder / "optimizer.pt").unlink()
        else:
            name = "whole" if damage == "mark" else "optimizer.pt"
            (folder / name).write_bytes(b"statf" if damage == "changed" else b"st")
    assert last_checkpoint(tmp_path) == (expected and tmp_path / f"checkpoint-{expected}")
    assert not (tmp_path / "checkpoint-4").exists()
    start = f"checkpoint-{expected} of the same folder" if expected else "the start"
    said = [record.message for record in caplog.records]
    assert sorted(said) == [
        f"{tmp_path}/checkpoint-{step}: is damaged and was removed; training goes on from {start}"
        for step in sorted(damaged)
    ]


@pytest.mark.parametrize("mark", ["", '{"optimizer.pt": 5, "trainer_state.json": SIZE}'])
def test_a_run_begun_before_checksums_were_kept_goes_on(tmp_path, mark):
    """Its checkpoints were taken for damaged and removed, with all that had been trained."""
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    state = folder / "trainer_state.json"
    TrainerState(global_step=7).save_to_json(state)
    (folder / "optimizer.pt").write_bytes(b"state")
    (folder / "whole").write_text(mark.replace("SIZE", str(state.stat().st_size)))
    assert last_checkpoint(tmp_path) == folder


def test_accumulated_steps_equal_one_large_batch(taught, tmp_path):
    _, trie, samples = taught
    weights = []
    for micro in (4, 16):
        drafter = tiny_llama(7, 1)
        schedule = schedule_of(epochs=2, micro_batch_size=micro)
        fit(drafter, Alignment(make_objective("AtSpeedRModel"), trie, 0.7), samples, samples, tmp_path / str(micro),
            schedule, world=1)  # fmt: skip
        weights.append(torch.cat([w.flatten() for w in drafter.parameters()]))
    torch.testing.assert_close(*weights, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 10}, "not a multiple of 4"),
        ({"report_to": "slate"}, "choose from none, tensorboard, wandb"),
        ({"report_to": "wandb"}, "pip install wandb"),
    ],
)
def test_a_schedule_that_cannot_run_is_refused(change, message):
    good = {"epochs": 1, "batch_size": 8, "micro_batch_size": 2}
    schedule_of(**good).check(world=2)
    with pytest.raises(UserError, match=message):
        schedule_of(**good | change).check(world=2)


@pytest.fixture
def two_gpus(monkeypatch):
    for name, value in (("is_available", True), ("device_count", 2), ("set_device", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)  # which has taken them for real


@pytest.mark.usefixtures("two_gpus")
def test_a_process_that_sees_several_gpus_trains_on_one(tmp_path):
    """Or the Trainer would share the model among them, and a batch would be as many times what was asked for."""
    arguments = training_arguments(tmp_path, schedule_of(), world=1, epochs=1)
    assert arguments.device.type == "cuda"
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == arguments.eval_batch_size == schedule_of().micro_batch_size
    assert arguments.parallel_mode == ParallelMode.NOT_PARALLEL
