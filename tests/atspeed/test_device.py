"""Teacher data, alignment, selection and stage 4 on a device: the CPU's results, nothing on the wrong device, and no
host sync but those written down."""

from copy import deepcopy
from functools import partial

import pytest
import torch

from atspeed.benchmark.methods import ALL, AUTO_CAPTURED, CAPTURED, make_methods
from atspeed.benchmark.runner import MethodBenchmark
from atspeed.data.samples import HistoryLoss, Samples, collate
from atspeed.data.teacher import teach, true_item
from atspeed.data.teacher_data import TeacherPlan
from atspeed.training.alignment import Alignment, DataPolicy, with_history
from atspeed.training.objectives import ITEM, STUDENT, TEACHER, make_objective
from atspeed.training.selection import Selection
from atspeed.tree_logits import tree_logits
from conftest import LENGTH, noisy_copy, random_items, tiny_llama
from fake_cuda import CUDA, move

PLAN = TeacherPlan("train", beam_size=5, subseq=False, max_users=None, seed=0, full_vocabulary=True, shard_size=16)


def decoding(requests, rounds):
    """The syncs of so many requests that take so many rounds together; see the decoder's test."""
    return {"settings.py:_read_prompts": requests, "beam_search.py:_play": requests + rounds}


def after_the_first(device, function):
    """What the second call gives: the first finds out what model and trie are."""
    function()
    device.forget()
    return function()


def test_teacher_data(device, taught):
    target, trie, samples = taught
    prompts, items = samples.prompts[:5], samples.items[:5]
    expected, logits = teach(target, trie, prompts, PLAN), true_item(target, prompts, items)
    target, trie = move(deepcopy(target)), trie.to(CUDA)
    found = after_the_first(device, lambda: teach(target, trie, prompts, PLAN))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)  # half precision
    # How many prefixes are distinct, how many children legal; and the five tensors of the result.
    assert device.syncs == decoding(1, LENGTH) | {"teacher.py:teach": 2 + 5}
    assert device.copies == {"teacher.py:teach": 2}  # prompts and their mask
    device.forget()
    torch.testing.assert_close(true_item(target, prompts, items), logits, atol=2e-3, rtol=2e-3)
    assert device.syncs == {"teacher.py:true_item": 1}  # the result
    assert device.copies == {"teacher.py:true_item": 3}


@pytest.mark.parametrize(
    ("model_class", "source", "stored"),
    [
        ("SFTModel", None, True),
        ("SeqKDModel", TEACHER, True),
        ("AtSpeedSModel", TEACHER, True),
        ("AtSpeedRModel", STUDENT, True),
        ("WordKDModel", ITEM, True),
        ("TVDKDModel", ITEM, False),
    ],
)
def test_losses_and_gradients(device, taught, model_class, source, stored):
    target, trie, samples = taught
    samples = Samples(
        samples.prompts, samples.items, samples.teacher, samples.width,
        HistoryLoss.of(samples.prompts, range(4, 40), LENGTH),
    )  # fmt: skip
    batch = collate([samples[i] for i in range(4)])
    if not stored:
        del batch["item_logits"]

    def step(student, target, trie, batch):
        alignment = Alignment(make_objective(model_class), trie, alpha=0.7)
        targets = DataPolicy(width=5, target=target).targets(source, alignment, student, batch) if source else None
        prompt, beams = (batch["input_ids"], batch["attention_mask"]), targets and targets.beams
        tree = tree_logits(student, *prompt, batch["item"], beams, prompt=True)
        losses = with_history(alignment.losses(tree, batch["item"], targets), tree, batch)
        losses.total.mean().backward()
        gradients = [weight.grad.cpu() for weight in student.parameters()]
        student.zero_grad()
        return losses.each.detach().cpu(), gradients

    expected = step(tiny_llama(7, 1).train(), target, trie, batch)
    there = move(tiny_llama(7, 1).train()), move(deepcopy(target)), trie.to(CUDA)
    batch = {name: tensor.to(CUDA) for name, tensor in batch.items()}
    found = after_the_first(device, lambda: step(*there, batch))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert device.syncs == (decoding(1, LENGTH) if source == STUDENT else {})
    assert device.copies == {}


def test_selection(device, taught):
    target, trie, samples = taught
    prompts, draft = samples.prompts[:5], noisy_copy(target, 0.2)
    expected = Selection(target, trie, prompts, width=4).measure(draft, batch_size=3)
    selection, draft = Selection(move(deepcopy(target)), trie, prompts, width=4), move(draft)
    found = after_the_first(device, lambda: selection.measure(draft, batch_size=3))
    assert torch.equal(found.cpu(), expected)
    rounds = device.syncs["beam_search.py:_play"] - 2
    assert 2 <= rounds <= 2 * LENGTH
    assert device.syncs == decoding(2, rounds)
    assert device.copies == {"selection.py:measure": 4}  # prompts and masks of two batches


def test_stage_4(device, taught):
    target, _, samples = taught
    items, names = random_items(60), [name for name in ALL if name not in (CAPTURED, AUTO_CAPTURED)]

    def run(target, draft, items):  # the second time, when all has been found out
        make = partial(make_methods, items=items, draft_width=12, gamma=3, names=names)
        bench = MethodBenchmark((target, draft), items, make)
        bench.methods["auto"] = bench.methods["speculative"]  # it chooses by the clock
        records = after_the_first(
            device, lambda: bench.run(samples.prompts[:2], range(2), (3,), batch_size=2, warmup=0)
        )
        return [(r.method, r.sequences, r.target_calls, r.accepted, r.tie) for r in records]

    draft = noisy_copy(target, 0.2)
    expected = run(target, draft, items)
    found = run(move(deepcopy(target)), move(draft), items.to(CUDA))
    assert found == expected
    assert set(device.syncs) == set(decoding(1, 1)) | {
        "runner.py:now", "clock.py:seconds",  # times are taken when the device is done
        # Without tree attention, how many paths there are and how long they are.
        "path_reader.py:_read_paths", "path_reader.py:_slots",
        # After that, the lists are looked at.
        "runner.py:_sequences", "runner.py:_have_equal_scores", "runner.py:_batch",
    }  # fmt: skip
    assert set(device.copies) == {"runner.py:_timed", "settings.py:_seeds"}
