"""Teacher data: what is stored is what the target says, at every position of its own beams; and it resumes."""

from dataclasses import replace

import pytest
import torch

from atspeed.checkpoints import Setting
from atspeed.teacher import Plan, TeacherData, shard_path, write_shards
from beamsd import Trie, beam_search
from conftest import LENGTH, VOCABULARY, random_items, tiny_llama

PLAN = Plan("train", beam_size=5, subseq=False, max_users=None, seed=0, full_vocabulary=True, shard_size=4)
SETTING = Setting("tiny", "", "", 20, 512)


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(4, VOCABULARY, (3 + i,), generator=generator).tolist() for i in range(10)]
    items = random_items(60)
    return tiny_llama(1, 2), Trie(items), prompts, items[:10]


def write(folder, case, plan=PLAN, rank=0, world=1):
    folder.mkdir(exist_ok=True)
    write_shards(folder, *case, plan, batch_size=3, rank=rank, world=world)


def test_holds_the_targets_beams_and_its_log_probabilities_along_them(tmp_path, case):
    model, trie, prompts, items = case
    write(tmp_path, case)
    data = TeacherData(tmp_path, SETTING, PLAN, len(prompts))
    for index, prompt in enumerate(prompts):
        lesson = data.lesson(index, trie.fanout)
        expected = beam_search(model, torch.tensor([prompt]), trie=trie, width=5)
        assert torch.equal(lesson.beams, expected.sequences[0])
        assert lesson.real.all()
        for beam, log_probs in zip(lesson.beams, lesson.log_probs, strict=True):
            with torch.no_grad():
                full = model(torch.cat([torch.tensor(prompt), beam])[None]).logits[0, -LENGTH - 1 : -1].log_softmax(-1)
            children = trie.children(trie.walk(beam)[:-1])
            legal = children != trie.dead
            said = full.gather(1, trie.tokens[children])
            torch.testing.assert_close(log_probs[legal], said[legal], atol=2e-2, rtol=2e-3)  # float16
        with torch.no_grad():
            full = model(torch.cat([torch.tensor(prompt), items[index]])[None]).logits[0, -LENGTH - 1 : -1]
        torch.testing.assert_close(lesson.item_logits, full, atol=2e-2, rtol=2e-3)


def test_an_interrupted_run_resumes_to_the_same_files_and_processes_share_the_work(tmp_path, case):
    whole, resumed, shared = (tmp_path / name for name in ("whole", "resumed", "shared"))
    write(whole, case)
    files = sorted(path.name for path in whole.iterdir())
    assert files == [shard_path(whole, i, 3).name for i in range(3)]

    write(resumed, case)
    kept, lost = (shard_path(resumed, i, 3) for i in (0, 1))
    lost.unlink()
    before = kept.stat().st_mtime_ns
    write(resumed, case)
    assert kept.stat().st_mtime_ns == before, "a shard that is there is not written again"
    for rank in range(2):
        write(shared, case, rank=rank, world=2)
    for name in files:
        for other in (resumed, shared):
            assert (other / name).read_bytes() == (whole / name).read_bytes()


def test_nothing_is_left_of_a_shard_that_failed(tmp_path, case):
    model, trie, prompts, items = case
    with pytest.raises(IndexError):  # token 99 is beyond the vocabulary
        write(tmp_path, (model, trie, [*prompts[:6], [99], *prompts[7:]], items))
    assert [path.name for path in tmp_path.iterdir()] == [shard_path(tmp_path, 0, 3).name]


def test_beams_beyond_the_catalogue_are_marked(tmp_path, case):
    model, _, prompts, _ = case
    items = random_items(3)
    plan = replace(PLAN, full_vocabulary=False)
    write(tmp_path, (model, Trie(items), prompts, items[[0] * 10]), plan)
    lesson = TeacherData(tmp_path, SETTING, plan, 10).lesson(7, fanout=4)
    assert lesson.real.tolist() == [True] * len(items) + [False] * (5 - len(items))
    assert lesson.item_logits is None
