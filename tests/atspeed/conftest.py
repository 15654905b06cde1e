"""Teacher data that a random target wrote, and random targets."""

from dataclasses import asdict

import pytest
import torch

from atspeed.checkpoints.checkpoint import DataSetting, save_checkpoint
from atspeed.checkpoints.loading import random_model
from atspeed.data.samples import Samples
from atspeed.data.teacher import write_shards
from atspeed.data.teacher_data import Manifest, TeacherData, TeacherPlan
from atspeed.prompts import EncodedSamples
from beamsd import Trie
from conftest import VOCABULARY, random_items, tiny_llama
from genrec.data.dataset import load_dataset
from genrec.data.toy import make_toy
from genrec.runtime.artefacts import make_facts

PLAN = TeacherPlan("train", beam_size=5, subseq=False, max_users=None, seed=0, full_vocabulary=True, shard_size=16)
EOS = 2


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """(target, trie, samples): 48 prompts that the target has answered with 5 beams each."""
    folder = tmp_path_factory.mktemp("teacher")
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(4, VOCABULARY, (3 + i % 5,), generator=generator).tolist() for i in range(48)]
    items = random_items(60)
    target, trie = tiny_llama(1, 2), Trie(items)
    wanted = items[torch.randint(len(items), (48,), generator=generator)]
    manifest = Manifest(PLAN, DataSetting("tiny", "", "", 20, 512), "", samples=48)

    def encode(rows):
        return EncodedSamples([prompts[i] for i in rows], wanted[list(rows)], EOS)

    write_shards(folder, target, trie, encode, manifest, batch_size=16)
    data = TeacherData(folder, manifest)
    responses = torch.cat([wanted, torch.full((48, 1), EOS)], -1)
    return target, trie, Samples(prompts, responses, data, trie.fanout)


def save_target(folder, seed=1, shape="micro"):
    """A random target of a toy, as stage 1 leaves it in `folder`/target; the toy is `folder`/data/toy."""
    make_toy(n_items=300, n_users=60).save(folder / "data" / "toy")
    data = load_dataset(str(folder / "data"), "toy")
    model, tokenizer = random_model(shape, data.catalogue, "float32", seed)
    facts = make_facts("finetune_llama", {"seed": seed}, setting=asdict(DataSetting.of(data, 20, 512)))
    save_checkpoint(folder / "target", model, tokenizer, data, facts)
    return folder / "target"


@pytest.fixture(scope="session")
def save_random_target():
    return save_target
