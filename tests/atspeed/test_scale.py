"""Several processes and machines, low precision, and trainings that are killed: the result stays what it was."""

import os
import stat
import subprocess
import sys

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from atspeed.checkpoints.lora import add_lora, merge_lora
from atspeed.training import precision
from atspeed.training.precision import check_mixed_precision, check_quantised
from atspeed.training.trainer import Schedule
from atspeed.tree_logits import tree_logits
from conftest import ROOT, random_prompts, tiny_llama, tiny_model
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path, write_text
from genrec.runtime.text import read_json
from scale_worker import ITEM_TOKENS, MOMENTS, train

WORKER = ROOT / "tests" / "scale_worker.py"
TIMES = ("runtime", "per_second", "flos")


def start(*command, **variables):
    path = os.pathsep.join(str(ROOT / folder) for folder in ("code", "tests"))
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *map(str, command)], env=os.environ | own | variables, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=300, check=False,
    )  # fmt: skip


def curve(history):
    """All that was logged but for times."""
    return [{name: value for name, value in row.items() if not any(t in name for t in TIMES)} for row in history]


def assert_same_curve(history, expected, tolerance):
    assert len(history) == len(expected)
    for row, other in zip(curve(history), curve(expected), strict=True):
        assert row == pytest.approx(other, rel=tolerance, abs=tolerance)


def test_two_processes_train_as_one_does_and_shards_are_gathered(tmp_path):
    """Beams in different numbers, a last batch and a last micro-batch that are not full, on either side."""
    launched = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, WORKER, "together", tmp_path)
    done = start(*launched)
    assert done.returncode == 0, done.stdout
    model, results = train(tmp_path / "alone", 1)
    assert results["steps"] == 9
    assert_same_curve(read_json(tmp_path / "history.json"), results["history"], 1e-5)
    weights = torch.load(tmp_path / "weights.pt")
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weights[name], weight, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_weights_in_shards_train_as_whole_ones_do(tmp_path):
    config = load_config_from_file(str(ROOT / "accelerate.fsdp.yaml")).fsdp_config
    settings = {name.upper(): str(value) for name, value in config.items()} | {"ACCELERATE_USE_FSDP": "true"}
    launched = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, WORKER, "sharded", tmp_path)
    done = start(*launched, **settings)
    assert done.returncode == 0, done.stdout
    model, results = train(tmp_path / "alone", 1, lora=0.0)
    assert_same_curve(read_json(tmp_path / "history.json"), results["history"], 1e-5)
    for weight, other in zip(
        torch.load(tmp_path / "weights.pt").values(), model.merge_and_unload().state_dict().values(), strict=True
    ):
        torch.testing.assert_close(weight, other, atol=1e-4, rtol=1e-4)


def test_micro_batches_do_not_change_the_losses(tmp_path):
    histories = [train(tmp_path / str(size), 1, micro_batch_size=size)[1]["history"] for size in (4, 16)]
    assert_same_curve(*histories, 1e-5)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    done = start(WORKER, "killed", folder)
    assert done.returncode == 0, done.stdout
    assert set(read_json(folder / "ends.json").values()) == {-9}, done.stdout
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_training_killed_at_any_moment_ends_with_the_same_bits(killed, tmp_path, moment):
    work = killed / moment
    last = 4 if moment == "killed_in_an_epoch" else 6
    assert {path.name for path in work.glob("checkpoint-*")} == {"checkpoint-3", f"checkpoint-{last}"}
    resumed, after = train(work, 1, **MOMENTS[moment])
    whole, uninterrupted = train(tmp_path, 1, **MOMENTS[moment])
    for name, weight in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name
    assert after["eval_loss"] == uninterrupted["eval_loss"]
    assert after["steps"] == uninterrupted["steps"]
    losses = [[row for row in curve(r["history"]) if "train_loss" not in row] for r in (after, uninterrupted)]
    assert losses[0] == losses[1]


def test_gradient_checkpointing_changes_nothing(tmp_path):
    models = [train(tmp_path / str(on), 1, epochs=1, gradient_checkpointing=on)[0] for on in (False, True)]
    for weight, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(weight, other, atol=1e-6, rtol=1e-6)


def test_mixed_precision_trains_with_losses_in_float32(tmp_path):
    losses = [train(tmp_path / name, 1, epochs=2, mixed_precision=name)[1] for name in ("no", "bf16")]
    assert losses[0]["eval_loss"] != losses[1]["eval_loss"]
    assert losses[0]["eval_loss"] == pytest.approx(losses[1]["eval_loss"], rel=2e-2)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_into_a_base_loaded_afresh_equals_merging_where_it_was_trained(tied, dtype):
    trained = add_lora(tiny_model("llama", tie_word_embeddings=tied).to(dtype), ITEM_TOKENS, 2, 4, 0.0)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in trained.parameters():
            if weight.requires_grad:
                weight += torch.randn_like(weight)
    ids, mask = random_prompts(2, 6)
    trained.eval()
    said = tree_logits(trained, ids, mask, ids[:, :2]).logits
    merged = merge_lora(trained, trained.state_dict(), tiny_model("llama", tie_word_embeddings=tied).to(dtype))
    direct = trained.merge_and_unload()
    assert merged.state_dict().keys() == direct.state_dict().keys()
    for name, weight in direct.state_dict().items():
        assert torch.equal(merged.state_dict()[name], weight), name
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    torch.testing.assert_close(tree_logits(merged.eval(), ids, mask, ids[:, :2]).logits, said, atol=tolerance, rtol=0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((True, True, False), "exclude one another"),
        ((True, False, True), "--load_in_8bit does not go with --full"),
        ((False, True, False), "--load_in_4bit needs "),  # bitsandbytes, or, where that is installed, a GPU
    ],
)
def test_quantised_training_that_cannot_be_is_refused(given, message):
    if "needs" in message and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=message):
        check_quantised(*given, "float32")
    assert check_quantised(False, False, False, "float32") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_quantisation_is_refused_even_with_bitsandbytes(monkeypatch):
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UserError, match="--load_in_4bit needs a GPU, and there is none"):
        check_quantised(False, True, False, "float32")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("fp8", "float32"), "choose from no, bf16, fp16"),
        (("fp16", "float32"), "needs a GPU"),
        (("bf16", "float16"), "--dtype float16 with --mixed_precision bf16 cannot be trained"),
        ((None, "float16", True), "--dtype float16 with --mixed_precision no cannot be trained"),
    ],
)
def test_precision_that_cannot_be_trained_in_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        check_mixed_precision(*given)
    assert check_mixed_precision(None, "float32") == "no"
    assert check_mixed_precision("bf16", "float16", frozen=True) == "bf16"


def test_weights_in_shards_of_deepspeed_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    with pytest.raises(UserError, match=r"zero_stage 3 .* accelerate.fsdp.yaml"):
        Schedule(1, 8, 2, 1e-3, 0.0, 0, 1, 0, "none").check(world=2)


@pytest.mark.parametrize("path", sorted(ROOT.glob("accelerate*.yaml")), ids=lambda path: path.name)
def test_every_key_of_an_accelerate_config_is_one_that_accelerate_reads(path):
    """accelerate refuses unknown keys at the top itself, and passes over those of the inner tables."""
    config = load_config_from_file(str(path))
    flags = vars(launch_command_parser().parse_args(["stage.py"]))
    for key, value in {**config.fsdp_config, **config.deepspeed_config}.items():
        assert key in flags, key
        assert value is not None, key


def test_files_may_be_read_by_whom_the_umask_lets(tmp_path):
    """safetensors leaves its files to their owner alone."""
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "model") as partial:
            tiny_llama(0, 1).save_pretrained(partial)
        write_text(tmp_path / "note", "")
    finally:
        os.umask(before)
    for path in (tmp_path / "model" / "model.safetensors", tmp_path / "note"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
