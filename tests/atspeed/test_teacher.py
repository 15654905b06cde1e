"""Teacher data: what is stored is what the target says, at every position of its own beams, in little room."""

import threading
import time
from dataclasses import replace
from functools import partial
from statistics import median

import pytest
import torch

from atspeed.benchmark.methods import GENERATE, make_methods
from atspeed.checkpoints.checkpoint import DataSetting
from atspeed.checkpoints.loading import random_model
from atspeed.data.teacher import finish, teach_shard, write_shards
from atspeed.data.teacher_data import Manifest, TeacherData, TeacherPlan
from atspeed.prompts import EncodedSamples, encode_samples, left_pad
from atspeed.training.losses import kl, topk_alignment, tvd
from beamsd import Trie, beam_search
from conftest import BEAUTY, ROOT, VOCABULARY, random_items, tiny_llama
from genrec.data.dataset import load_dataset

PLAN = TeacherPlan("train", beam_size=5, subseq=False, max_users=None, seed=0, full_vocabulary=True, shard_size=4)
MANIFEST = Manifest(PLAN, DataSetting("tiny", "", "", 20, 512), target="", samples=10)


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(4, VOCABULARY, (3 + 7 * i % 10,), generator=generator).tolist() for i in range(10)]
    items = random_items(60)
    return tiny_llama(1, 2), Trie(items), prompts, items[:10]


def pick(prompts, items, rows):
    return EncodedSamples([prompts[i] for i in rows], items[list(rows)], 2)


def write(folder, case, manifest=MANIFEST):
    model, trie, prompts, items = case
    write_shards(folder, model, trie, partial(pick, prompts, items), manifest, batch_size=3)
    return TeacherData(folder, manifest)


def log_probs_along(model, prompt, sequence):
    """(L, V): the model's before each token, from one plain forward."""
    with torch.no_grad():
        ids = torch.cat([torch.tensor(prompt), sequence])[None]
        return model(ids).logits[0, -len(sequence) - 1 : -1].log_softmax(-1)


def test_holds_the_targets_beams_and_its_log_probabilities_along_them(tmp_path, case):
    model, trie, prompts, items = case
    data = write(tmp_path, case)
    for index, prompt in enumerate(prompts):
        targets = data.targets_of(index, trie.fanout)
        expected = beam_search(model, torch.tensor([prompt]), trie=trie, width=5)
        assert torch.equal(targets.beams, expected.sequences[0])
        assert targets.real.all()
        for beam, log_probs in zip(targets.beams, targets.log_probs, strict=True):
            children = trie.children(trie.walk(beam)[:-1])
            legal = children != trie.dead
            said = log_probs_along(model, prompt, beam).gather(1, trie.tokens[children])
            torch.testing.assert_close(log_probs[legal], said[legal], atol=1e-3, rtol=1e-3)  # float16
        said = log_probs_along(model, prompt, items[index])
        torch.testing.assert_close(targets.item_logits, said, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("loss", [kl, tvd, lambda q, p: topk_alignment(q, p, 3)], ids=["kl", "tvd", "topk"])
def test_losses_against_what_is_stored_are_those_against_the_live_target(tmp_path, case, loss):
    model, trie, prompts, items = case
    student, data = tiny_llama(7, 1), write(tmp_path, case)
    for index, prompt in enumerate(prompts[:4]):
        targets = data.targets_of(index, trie.fanout)
        q, p = (log_probs_along(m, prompt, items[index]) for m in (student, model))
        torch.testing.assert_close(loss(q, targets.item_logits), loss(q, p), atol=1e-3, rtol=2e-3)
        for beam, stored in zip(targets.beams, targets.log_probs, strict=True):
            q, p = (log_probs_along(m, prompt, beam) for m in (student, model))
            for level, state in enumerate(trie.walk(beam)[:-1]):
                children = trie.children(state)
                tokens = trie.tokens[children[children != trie.dead]]
                got = loss(q[level, tokens], stored[level, : len(tokens)])
                torch.testing.assert_close(got, loss(q[level, tokens], p[level, tokens]), atol=1e-3, rtol=2e-3)


def test_every_prefix_is_stored_once(tmp_path, case):
    _, trie, prompts, _ = case
    data = write(tmp_path, case)
    states = [trie.walk(data.targets_of(i, trie.fanout).beams)[:, :-1].unique() for i in range(len(prompts))]
    children = sum(int((trie.children(each) != trie.dead).sum()) for each in states)
    shards = [
        teach_shard(case[0], trie, EncodedSamples(prompts, case[3], 2), PLAN, batch_size) for batch_size in (1, 4)
    ]
    assert [len(shard["log_probs"]) for shard in shards] == [children, children]
    for name in ("beams", "starts", "offsets"):
        assert torch.equal(shards[0][name], shards[1][name]), "how prompts are batched shows in what is stored"


def test_writers_of_any_speed_share_the_shards(tmp_path, case):
    model, trie, prompts, items = case
    manifest, encoded = replace(MANIFEST, plan=replace(PLAN, shard_size=1)), {"slow": [], "fast": []}

    def writer(name, seconds):
        def encode(rows):
            encoded[name] += rows
            time.sleep(seconds)
            return pick(prompts, items, rows)

        write_shards(tmp_path, model, trie, encode, manifest, batch_size=1)

    threads = [threading.Thread(target=writer, args=args) for args in (("slow", 0.5), ("fast", 0.0))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(encoded["slow"] + encoded["fast"]) == list(range(10)), "a shard was written twice, or never"
    assert len(encoded["fast"]) > len(encoded["slow"]) > 0
    assert len(finish(tmp_path, manifest)["shards"]) == 10


def test_nothing_is_left_of_a_shard_that_failed(tmp_path, case):
    model, trie, prompts, items = case
    with pytest.raises(ValueError, match="the prompts hold token 99"):
        write(tmp_path, (model, trie, [*prompts[:6], [99], *prompts[7:]], items))
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["shard-00000-of-00003.safetensors"]


def test_beams_beyond_the_catalogue_are_marked(tmp_path, case):
    model, _, prompts, _ = case
    items = random_items(3)
    manifest = replace(MANIFEST, plan=replace(PLAN, full_vocabulary=False))
    targets = write(tmp_path, (model, Trie(items), prompts, items[[0] * 10]), manifest).targets_of(7, width=4)
    assert targets.real.tolist() == [True] * len(items) + [False] * (5 - len(items))
    assert targets.item_logits is None


@pytest.fixture(scope="module", params=["toy", "beauty"])
def world(request):
    """(data, items, model, 256 encoded prompts): real or toy data, and a random model of the shape `tiny`."""
    if request.param == "beauty" and not BEAUTY.is_dir():
        pytest.skip(f"{BEAUTY} is not there; bash data/download.sh beauty")
    folder = BEAUTY if request.param == "beauty" else ROOT / "data" / "toy"
    data = load_dataset(str(folder.parent), folder.name)
    model, tokenizer = random_model("tiny", data.catalogue, torch.float32, seed=0)
    encoded = encode_samples(tokenizer, data.catalogue, data.samples("train")[:256], 512)
    return data, data.catalogue.token_ids(tokenizer), model, encoded


def test_takes_a_twentieth_of_the_released_format(tmp_path, world):
    data, items, model, encoded = world
    plan = replace(PLAN, beam_size=20, full_vocabulary=False, shard_size=96)
    manifest = Manifest(plan, MANIFEST.setting, "", 96)
    write_shards(tmp_path, model, Trie(items), partial(pick, encoded.prompts, encoded.items), manifest, batch_size=16)
    finish(tmp_path, manifest)
    (shard,) = tmp_path.iterdir()
    released = 96 * 20 * 5 * len(data.catalogue.tokens) * 2  # prompts x beams x positions x item tokens, float16
    assert shard.stat().st_size <= released / 20


@pytest.mark.slow
@pytest.mark.parametrize("world", ["beauty"], indirect=True)
def test_answers_ten_times_the_prompts_of_one_generate_call_each(world):
    """Taken in turns, so that what else the machine does slows both."""
    _, items, model, encoded = world
    trie, plan = Trie(items), replace(PLAN, beam_size=20, full_vocabulary=False)
    generate = make_methods(model, None, items, None, 0, names=[GENERATE])[GENERATE].decode
    one_by_one, together = [], []
    with torch.inference_mode():
        for turn in range(7):
            start = time.perf_counter()
            for prompt in encoded.prompts[8 * turn : 8 * turn + 8]:
                generate(*left_pad([prompt]), 20, None)
            middle = time.perf_counter()
            teach_shard(model, trie, encoded, plan, batch_size=16)
            one_by_one.append((middle - start) / 8)
            together.append((time.perf_counter() - middle) / len(encoded.prompts))
    rates = [1 / median(times[1:]) for times in (one_by_one, together)]  # the first turn warms up
    print(f"prompts/s: generate {rates[0]:.1f}, teacher data {rates[1]:.1f}, {rates[1] / rates[0]:.1f} times as many")
    assert rates[1] >= 10 * rates[0]
