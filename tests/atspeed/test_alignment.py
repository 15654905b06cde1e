"""The loss of a batch, put together by hand, whoever's prefixes it is aligned on; and the data policy."""

from itertools import combinations_with_replacement, product
from math import log

import pytest
import torch

from atspeed.checkpoints.checkpoint import DataSetting
from atspeed.data.compared import ComparedTokens
from atspeed.data.samples import Samples, collate
from atspeed.data.teacher import write_shards
from atspeed.data.teacher_data import ALIGNMENT_OVER, LEVEL, TRIE, VOCABULARY, Manifest, TeacherData, TeacherPlan
from atspeed.prompts import EncodedSamples
from atspeed.training.alignment import Alignment, DataPolicy
from atspeed.training.losses import kl, topk_alignment, tvd
from atspeed.training.objectives import ITEM, MODEL_CLASSES, STUDENT, TEACHER, make_objective
from atspeed.tree_logits import tree_logits
from beamsd import Trie, beam_search
from conftest import LENGTH, random_items, tiny_llama
from genrec.runtime.errors import UserError

LOSSES = {"AtSpeedSModel": topk_alignment, "AtSpeedRModel": tvd, "WordKDModel": kl, "TVDKDModel": tvd}


CONSTRAINTS = [(TRIE, True), (TRIE, False), (LEVEL, True), (LEVEL, False), (VOCABULARY, False)]


def paths(trie):
    """All items of a trie, as lists of tokens."""
    found, states = [[]], torch.zeros(1, dtype=torch.long)
    for _ in range(trie.length):
        children = [[c for c in row if c != trie.dead] for row in trie.children(states).tolist()]
        found = [[*path, int(trie.tokens[c])] for path, row in zip(found, children, strict=True) for c in row]
        states = torch.tensor([c for row in children for c in row])
    return found


def naive_losses(model_class, student, target, trie, prompt, sequences, constraints):
    """The alignment loss at every position of `sequences` (K, L), with one forward a sequence and model."""
    losses, items = [], paths(trie)
    for sequence in sequences:
        q, p = (
            model(torch.cat([prompt, sequence])[None]).logits[0, len(prompt) - 1 : -1].softmax(-1)
            for model in (student, target)
        )
        for t in range(LENGTH):
            a, b = q[t], p[t]
            over = {TRIE: [item for item in items if item[:t] == sequence[:t].tolist()], LEVEL: items}
            if constraints[0] in over:
                tokens = sorted({item[t] for item in over[constraints[0]]})
                a, b = a[tokens], b[tokens]
                if not constraints[1]:
                    a, b = (torch.cat([x, 1 - x.sum()[None]]) for x in (a, b))
            loss = LOSSES[model_class]
            losses.append(loss(a.log(), b.log(), *([3] if loss is topk_alignment else [])).item())
    return losses


@pytest.mark.parametrize("constraints", CONSTRAINTS, ids=str)
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


@pytest.mark.parametrize("n_items", [60, 3], ids=["", "fewer items than beams"])
@pytest.mark.parametrize(("held", "over"), list(combinations_with_replacement(reversed(ALIGNMENT_OVER), 2)))
@torch.no_grad()
def test_teacher_data_serve_what_they_hold_and_all_that_is_narrower(tmp_path, n_items, held, over):
    """As the live target would, whom nobody asks."""
    target, student, items = tiny_llama(1, 2), tiny_llama(7, 1), random_items(n_items)
    trie, prompts = Trie(items), [[5, 6, 7], [8, 9], [5, 9, 4, 4]]
    plan = TeacherPlan("train", 5, False, None, 0, full_vocabulary=False, shard_size=2, alignment_over=held)
    manifest = Manifest(plan, DataSetting("tiny", "", "", 20, 512), "", samples=3)

    def encode(rows):
        return EncodedSamples([prompts[i] for i in rows], items[[0] * len(rows)], 2)

    write_shards(tmp_path, target, trie, encode, manifest, batch_size=2)
    responses = torch.cat([items[[0] * 3], torch.full((3, 1), 2)], -1)
    width = ComparedTokens(held, trie).width(target.config.vocab_size)
    batch = collate(list(Samples(prompts, responses, TeacherData(tmp_path, manifest), width)))
    alignment = Alignment(make_objective("AtSpeedRModel", 3, over), trie, 1.0, held_over=held)
    got = DataPolicy().targets(TEACHER, alignment, student, batch)
    tree = tree_logits(target, batch["input_ids"], batch["attention_mask"], batch["item"], batch["beams"])
    real = alignment.compared.real(got.beams) & got.real[..., None, None]
    expected = alignment.compared.log_probs(tree, got.beams)
    assert got.log_probs.shape == expected.shape
    assert got.real.sum() == 3 * min(5, len(items.unique(dim=0)))
    torch.testing.assert_close(got.log_probs.where(real, 0), expected.where(real, 0), atol=1e-3, rtol=1e-3)
    tree = tree_logits(student, batch["input_ids"], batch["attention_mask"], batch["item"], batch["beams"])
    assert alignment.losses(tree, batch["item"], got).total.isfinite().all()


def test_the_levels_of_a_catalogue_have_their_own_codes():
    trie = Trie(torch.tensor([[5, 9, 7], [5, 8, 7], [6, 9, 7]]))
    compared, beams = ComparedTokens(LEVEL, trie), torch.tensor([[[5, 9, 7]]])
    assert compared.codes.tolist() == [[5, 6], [8, 9], [7, 10]]  # 10 is none
    assert compared.real(beams).tolist() == [[[[True, True], [True, True], [True, False]]]]
    over_trie = ComparedTokens(TRIE, trie)
    assert over_trie.real(beams).tolist() == [[[[True, True], [True, True], [True, False]]]], "5 goes on by 8 and 9"
    assert over_trie.real(torch.tensor([[[6, 9, 7]]])).tolist() == [[[[True, True], [True, False], [True, False]]]]
    held = torch.tensor([[[[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]]]])
    among = over_trie.among(compared, held, torch.tensor([[[6, 9, 7]]]))
    assert among[..., 0].tolist() == [[[-1, -4, -5]]], "9, of 8 and 9"


def test_without_the_density_term_is_the_reverse_kl_alone():
    student, teacher = torch.tensor([0.3, 0.5, 0.2]).log(), torch.tensor([0.2, 0.6, 0.2]).log()
    without = make_objective("AtSpeedSModel", 2, density=False).align(student, teacher)
    assert without.item() == pytest.approx(5 / 8 * log(5 / 6) + 3 / 8 * log(3 / 2))
    assert make_objective("AtSpeedSModel", 2).align(student, teacher).item() > without.item() + 0.1


@pytest.mark.parametrize(
    ("options", "over"),
    [
        ({}, TRIE), (dict(constrained_alignment=True), TRIE), (dict(constrained_alignment=False), VOCABULARY),
        (dict(alignment_over=LEVEL), LEVEL), (dict(alignment_over=LEVEL, constrained_alignment=True), LEVEL),
        (dict(alignment_over=VOCABULARY, constrained_alignment=False), VOCABULARY),
    ],
)  # fmt: skip
def test_an_unconstrained_alignment_is_one_over_the_vocabulary(options, over):
    objective = make_objective("AtSpeedSModel", 3, **options)
    assert (objective.alignment_over, objective.constrained_softmax) == (over, over != VOCABULARY)
    assert make_objective("TVDKDModel", constrained_alignment=True).alignment_over == TRIE
    for contradiction in (dict(alignment_over=LEVEL, constrained_alignment=False), dict(alignment_over="levels")):
        with pytest.raises(UserError, match="--alignment_over level"):
            make_objective("AtSpeedSModel", 3, **contradiction)
    with pytest.raises(UserError, match="--density false: --model_class AtSpeedRModel has no density term"):
        make_objective("AtSpeedRModel", density=False)


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
            model_class, student, target, trie, torch.tensor(prompt), item[None, :LENGTH], (VOCABULARY, False)
        )
    ]
    got = alignment.losses(tree, batch["item"], targets).total.mean().item()
    assert got == pytest.approx(sum(expected) / len(expected), rel=2e-3)


@pytest.mark.parametrize("constraints", CONSTRAINTS, ids=str)
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
        ("SeqKDModel", (0.0, 0.0), (VOCABULARY, None), "leave out --alignment_over"),
        ("AtSpeedRModel", (0.0, 0.0), (VOCABULARY, True), "pass --alignment_over trie or level"),
        ("WordKDModel", (0.0, 0.0), (None, True), "pass --alignment_over trie or level"),
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
    for held, over in product(ALIGNMENT_OVER, repeat=2):
        served = {TRIE: 0, LEVEL: 1, VOCABULARY: 2}[held] >= {TRIE: 0, LEVEL: 1, VOCABULARY: 2}[over]
        assert DataPolicy().needs_target(make_objective("AtSpeedSModel", 3, over), True, held) is not served
