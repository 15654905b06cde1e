"""Shards: what is foreign, swapped or damaged is refused; and processes that write at once end with the same files."""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from atspeed.checkpoints.checkpoint import DataSetting, open_checkpoint, save_checkpoint
from atspeed.checkpoints.loading import random_model
from atspeed.data.shards import check_shard, claim_shard, clear_claims, save_shard, shard_path
from atspeed.data.teacher_data import TeacherData
from conftest import ROOT, environment, succeed
from genrec.data.dataset import load_dataset
from genrec.data.toy import make_toy
from genrec.runtime.artefacts import make_facts
from genrec.runtime.errors import UserError
from genrec.runtime.files import write_json
from genrec.runtime.text import read_json

ORIGIN = {"target": "a", "shard": 0}
TENSORS = {"beams": torch.arange(6).view(2, 3), "log_probs": torch.ones(5).half()}
STAGE = ("generate_teacher_data", "--shard_size=4", "--full_vocabulary=true")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def anonymous(path):
    save_file(load_file(path), path)


def other_target(path):
    save_shard(path, TENSORS, ORIGIN | {"target": "b"})


def other_place(path):
    save_shard(path, TENSORS, ORIGIN | {"shard": 1})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "no such shard; again"),
        (truncated, "damaged, perhaps truncated"),
        (empty, "damaged, perhaps truncated"),
        (flipped, "its contents are not those that were written"),
        (anonymous, "is of another run: shard None, not 0"),
        (other_target, "is of another run: target b, not a; delete it, and again"),
        (other_place, "is of another run: shard 1, not 0"),
    ],
)
def test_a_shard_that_is_not_what_it_should_be_is_refused(tmp_path, damage, message):
    path = shard_path(tmp_path, 0, 1)
    save_shard(path, TENSORS, ORIGIN)
    assert check_shard(path, ORIGIN, "again") == check_shard(path, ORIGIN, "again", contents=False)
    damage(path)
    with pytest.raises(UserError, match=message) as error:
        check_shard(path, ORIGIN, "again", contents=damage is flipped)
    assert str(path) in str(error.value)


def test_one_process_claims_a_shard_and_what_the_dead_left_is_cleared(tmp_path):
    path = shard_path(tmp_path, 0, 1)
    assert [claim_shard(path), claim_shard(path)] == [True, False]
    path.with_name(f".{path.name}.partial-1").touch()
    save_shard(path, TENSORS, ORIGIN)
    clear_claims(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    assert claim_shard(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small toy, a random target, and the teacher data that one process writes."""
    folder = tmp_path_factory.mktemp("world")
    make_toy(n_items=300, n_users=120).save(folder / "data" / "toy")
    data = load_dataset(str(folder / "data"), "toy")
    model, tokenizer = random_model("tiny", data.catalogue, torch.float32, seed=0)
    facts = make_facts("finetune_llama", {}, setting=asdict(DataSetting.of(data, 20, 512)))
    save_checkpoint(folder / "output" / "toy" / "target", model, tokenizer, data, facts)
    succeed(STAGE[0], folder, *STAGE[1:])
    return folder


def shards(folder):
    """What all shards hold, and whatever else there is in their names."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.glob("output/toy/*_teacher_data/*shard*")}


def test_the_manifest_says_what_the_shards_hold(world):
    folder = world / "output" / "toy" / "train_teacher_data"
    facts = read_json(folder / "facts.json")
    target = read_json(world / "output" / "toy" / "target" / "facts.json")
    assert facts["setting"] == target["setting"]
    assert facts["samples"] == 112
    assert len(facts["shards"]) == len(list(folder.glob("*.safetensors"))) == 28
    assert not list(folder.glob(".*")), "claims or partial files are left"


def swap(folder):
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    third = first.rename(folder / "third")
    second.rename(first)
    third.rename(second)


def flip(folder):
    flipped(sorted(folder.glob("*.safetensors"))[7])


def other_manifest(folder):
    facts = read_json(folder / "facts.json")
    write_json(folder / "facts.json", facts | {"shards": facts["shards"][::-1]})


def other_format(folder):
    facts = read_json(folder / "facts.json")
    write_json(folder / "facts.json", {name: value for name, value in facts.items() if name != "format"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (swap, "shard-00000-of-00028.safetensors: is of another run: shard 1, not 0"),
        (flip, "shard-00007-of-00028.safetensors: damaged, its contents are not those"),
        (other_manifest, "shard-00000-of-00028.safetensors: has not the hash that"),
        (other_format, "was written by another version of this stage"),
    ],
)
def test_training_refuses_teacher_data_that_were_tampered_with(world, tmp_path, damage, message):
    folder = shutil.copytree(world / "output" / "toy" / "train_teacher_data", tmp_path / "taught")
    data = load_dataset(str(world / "data"), "toy")
    target = open_checkpoint(str(world / "output/toy/target"), "finetune_llama", "finetune_llama", data)
    assert TeacherData.open(str(folder), "train", data, target).targets_of(111, 20).real.all()
    damage(folder)
    with pytest.raises(UserError, match=message):
        TeacherData.open(str(folder), "train", data, target)


def a_worker(folder):
    """The process id in a claim."""
    return next(
        (int(claim_shard.read_text().split()[1]) for claim_shard in folder.glob(".*.claim") if claim_shard.read_text()),
        None,
    )


def test_a_process_that_dies_leaves_whole_shards_and_others_end_with_the_files_of_one(world, tmp_path):
    """Killed by kill -9, one of two, while they write."""
    for name in ("data", "output/toy/target"):
        shutil.copytree(world / name, tmp_path / name)
    folder = tmp_path / "output" / "toy" / "train_teacher_data"
    process = subprocess.Popen(
        ["bash", ROOT / "script" / f"{STAGE[0]}.sh", *STAGE[1:]], env=environment(tmp_path, NUM_PROCESSES="2"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    while not (any(folder.glob("shard-*")) and (worker := a_worker(folder))):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    os.kill(worker, signal.SIGKILL)
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0, output
    assert not (folder / "facts.json").exists(), "it was killed too late for this test"
    for path in folder.glob("shard-*"):
        assert path.read_bytes() == (world / path.relative_to(tmp_path)).read_bytes()
    assert "resumed" in succeed(STAGE[0], tmp_path, *STAGE[1:], NUM_PROCESSES="2")
    assert shards(tmp_path) == shards(world)
