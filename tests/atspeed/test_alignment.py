"""The loss of a batch, put together by hand, whoever's prefixes it is aligned on; and the data policy."""

import pytest
import torch

from atspeed.data.samples import collate
from atspeed.training.alignment import Alignment, DataPolicy
from atspeed.training.losses import kl, topk_alignment, tvd
from atspeed.training.objectives import ITEM, MODEL_CLASSES, STUDENT, TEACHER, make_objective
from atspeed.tree_logits import tree_logits
from beamsd import beam_search
from conftest import LENGTH, tiny_llama
from genrec.runtime.errors import UserError

LOSSES = {"AtSpeedSModel": topk_alignment, "AtSpeedRModel": tvd, "WordKDModel": kl, "TVDKDModel": tvd}


def naive_losses(model_class, student, target, trie, prompt, sequences, constraints):
    """The alignment loss at every position of `sequences` (K, L), with one forward a sequence and model."""
    losses = []
    for sequence in sequences:
        q, p = (
            model(torch.cat([prompt, sequence])[None]).logits[0, len(prompt) - 1 : -1].softmax(-1)
            for model in (student, target)
        )
        for t, state in enumerate(trie.walk(sequence)[:-1]):
            a, b = q[t], p[t]
            if constraints[0]:
                children = trie.children(state)
                tokens = trie.tokens[children[children != trie.dead]]
                a, b = a[tokens], b[tokens]
                if not constraints[1]:
                    a, b = (torch.cat([x, 1 - x.sum()[None]]) for x in (a, b))
            loss = LOSSES[model_class]
            losses.append(loss(a.log(), b.log(), *([3] if loss is topk_alignment else [])).item())
    return losses


@pytest.mark.parametrize("constraints", [(True, True), (True, False), (False, False)], ids=str)
@pytest.mark.parametrize("source", [TEACHER, ITEM, STUDENT])
@pytest.mark.parametrize("model_class", ["AtSpeedSModel", "AtSpeedRModel"])
@torch.no_grad()
def test_loss_equals_a_loop_over_beams_and_positions(taught, model_class, source, constraints):
    target, trie, samples = taught
    student, batch = tiny_llama(7, 1), collate([samples[i] for i in range(3)])
    alignment = Alignment(make_objective(model_class, 3, *constraints), trie, alpha=0.7)
    targets = DataPolicy(width=5, target=target).targets(source, alignment, student, batch)
    tree = tree_logits(student, batch["input_ids"], batch["attention_mask"], batch["item"], targets.beams)
    got = alignment.losses(tree, batch["item"], targets)
    losses, recommend = [], []
    for i in range(3):
        prompt, item = torch.tensor(samples.prompts[i]), samples.items[i]
        logits = student(torch.cat([prompt, item])[None]).logits[0, len(prompt) - 1 : -1]
        recommend += torch.nn.functional.cross_entropy(logits, item, reduction="none").tolist()
        sequences = {
            TEACHER: lambda i: batch["beams"][i],
            ITEM: lambda i: samples.items[i][None, :LENGTH],
            STUDENT: lambda i: beam_search(student, torch.tensor([samples.prompts[i]]), trie=trie, width=5).sequences[
                0
            ],
        }[source](i)
        losses += naive_losses(model_class, student, target, trie, prompt, sequences, constraints)
    assert len(losses) == 3 * (1 if source == ITEM else 5) * LENGTH, "no position for EOS"
    assert len(recommend) == 3 * (LENGTH + 1)
    expected = 0.3 * sum(recommend) / len(recommend) + 0.7 * sum(losses) / len(losses)
    assert got.total.mean().item() == pytest.approx(expected, rel=2e-3)  # what is stored is float16
    by_level = torch.tensor(losses).view(-1, LENGTH).mean(0)
    torch.testing.assert_close(got.levels.mean(0), by_level, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("model_class", ["WordKDModel", "TVDKDModel"])
@pytest.mark.parametrize("stored", [True, False])
@torch.no_grad()
def test_wordkd_and_tvdkd_compare_the_vocabulary_on_the_items_prefix(taught, model_class, stored):
    target, trie, samples = taught
    student, batch = tiny_llama(7, 1), collate([samples[i] for i in range(3)])
    if not stored:
        del batch["item_logits"]
    alignment = Alignment(make_objective(model_class), trie, alpha=1.0)
    policy = DataPolicy(target=None if stored else target)
    assert policy.needs_target(alignment.objective, stored) is not stored
    targets = policy.targets(alignment.objective.default_prefix, alignment, student, batch)
    tree = tree_logits(student, batch["input_ids"], batch["attention_mask"], batch["item"], targets.beams)
    expected = [
        loss
        for prompt, item in zip(samples.prompts[:3], samples.items[:3], strict=True)
        for loss in naive_losses(
            model_class, student, target, trie, torch.tensor(prompt), item[None, :LENGTH], (False, False)
        )
    ]
    got = alignment.losses(tree, batch["item"], targets).total.mean().item()
    assert got == pytest.approx(sum(expected) / len(expected), rel=2e-3)


@pytest.mark.parametrize("constraints", [(True, True), (True, False), (False, False)], ids=str)
@pytest.mark.parametrize("model_class", ["AtSpeedSModel", "AtSpeedRModel", "WordKDModel"])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_a_student_on_its_own_beams_stays_in_training_with_finite_gradients(
    taught, model_class, constraints, temperature
):
    target, trie, samples = taught
    student, batch = tiny_llama(7, 1).train(), collate([samples[i] for i in range(4)])
    alignment = Alignment(make_objective(model_class, 3, *constraints), trie, 1.0, temperature)
    # More beams than the catalogue has items: what is not real must not count, and must not spoil the rest.
    policy = DataPolicy(r_student=1.0, width=70, target=target)
    targets = policy.targets(STUDENT, alignment, student, batch)
    assert not targets.real.all()
    assert not targets.log_probs.requires_grad
    assert student.training
    tree = tree_logits(student, batch["input_ids"], batch["attention_mask"], batch["item"], targets.beams)
    losses = alignment.losses(tree, batch["item"], targets)
    losses.total.mean().backward()
    gradients = torch.cat([weight.grad.flatten() for weight in student.parameters()])
    assert gradients.isfinite().all()
    assert gradients.abs().max() > 1e-4
    assert all(weight.grad is None for weight in target.parameters())


def test_half_precision_models_are_compared_in_float32(taught):
    target, trie, samples = taught
    batch = collate([samples[i] for i in range(3)])
    alignment = Alignment(make_objective("AtSpeedSModel", 3), trie, 0.7)
    student = tiny_llama(7, 1).bfloat16()
    targets = DataPolicy(width=5, target=target).targets(STUDENT, alignment, student, batch)
    tree = tree_logits(student, batch["input_ids"], batch["attention_mask"], batch["item"], targets.beams)
    losses = alignment.losses(tree, batch["item"], targets)
    assert tree.logits.dtype == torch.bfloat16
    assert losses.total.dtype == losses.levels.dtype == targets.log_probs.dtype == torch.float32


def test_shares_of_batches_are_as_asked_and_the_same_after_a_restart():
    policy = DataPolicy(r_original=0.2, r_student=0.3, seed=1)
    drawn = [policy.source(TEACHER, step) for step in range(4000)]
    for source, share in ((ITEM, 0.2), (STUDENT, 0.3), (TEACHER, 0.5)):
        assert drawn.count(source) / 4000 == pytest.approx(share, abs=0.03)
    again = DataPolicy(r_original=0.2, r_student=0.3, seed=1)
    assert [again.source(TEACHER, step) for step in range(2000, 4000)] == drawn[2000:], "a function of seed and step"
    assert [DataPolicy(0.2, 0.3, seed=2).source(TEACHER, step) for step in range(4000)] != drawn
    for policy, only in ((DataPolicy(), TEACHER), (DataPolicy(1.0), ITEM), (DataPolicy(0.0, 1.0), STUDENT)):
        assert {policy.source(TEACHER, step) for step in range(500)} == {only}


@pytest.mark.parametrize(
    ("model_class", "policy", "constraints", "message"),
    [
        ("AtSpeedSModel", (0.6, 0.5), (), "--r_original 0.6 and --r_student 0.5 are shares"),
        ("SFTModel", (0.0, 0.5), (), "--model_class SFTModel compares no distributions"),
        ("SeqKDModel", (0.5, 0.0), (), "--model_class SeqKDModel compares no distributions"),
        ("SeqKDModel", (0.0, 0.0), (False, None), "leave out --constrained_loss"),
        ("AtSpeedRModel", (0.0, 0.0), (False, True), "--constrained_loss false would compare more"),
        ("WordKDModel", (0.0, 0.0), (None, True), "pass both true, or both false"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(model_class, policy, constraints, message):
    with pytest.raises(UserError, match=message):
        DataPolicy(*policy).check(model_class, make_objective(model_class, 3, *constraints))


def test_the_target_is_loaded_only_where_the_teacher_data_do_not_suffice():
    needs = {name: DataPolicy().needs_target(make_objective(name), stored=True) for name in MODEL_CLASSES}
    assert not any(needs.values())
    atspeed = make_objective("AtSpeedSModel")
    assert DataPolicy(r_student=0.1).needs_target(atspeed, stored=True)
    assert DataPolicy(r_original=0.1).needs_target(atspeed, stored=False)
    assert not DataPolicy(r_original=0.1).needs_target(atspeed, stored=True)
    assert DataPolicy().needs_target(make_objective("AtSpeedSModel", 3, False), stored=True)
