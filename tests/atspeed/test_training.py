"""The loss of a batch, put together by hand; and that training does what each objective is for."""

import pytest
import torch

from atspeed.checkpoints import Setting
from atspeed.forward import tree_logits
from atspeed.losses import topk_alignment, tvd
from atspeed.objectives import MODEL_CLASSES, make_objective
from atspeed.prompts import Encoded
from atspeed.teacher import Manifest, Plan, TeacherData, write_shards
from atspeed.training import Alignment, Samples, Schedule, collate, fit
from beamsd import Trie, beam_search
from conftest import LENGTH, VOCABULARY, random_items, tiny_llama
from genrec.errors import UserError

PLAN = Plan("train", beam_size=5, subseq=False, max_users=None, seed=0, full_vocabulary=True, shard_size=16)
EOS = 2


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """(target, trie, samples): 48 prompts that a random target has answered."""
    folder = tmp_path_factory.mktemp("teacher")
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(4, VOCABULARY, (3 + i % 5,), generator=generator).tolist() for i in range(48)]
    items = random_items(60)
    target, trie = tiny_llama(1, 2), Trie(items)
    wanted = items[torch.randint(len(items), (48,), generator=generator)]
    manifest = Manifest(PLAN, Setting("tiny", "", "", 20, 512), "", samples=48)
    encode = lambda rows: Encoded([prompts[i] for i in rows], wanted[list(rows)], EOS)  # noqa: E731
    write_shards(folder, target, trie, encode, manifest, batch_size=16)
    data = TeacherData(folder, manifest)
    responses = torch.cat([wanted, torch.full((48, 1), EOS)], -1)
    return target, trie, Samples(prompts, responses, data, trie.fanout)


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize(("model_class", "loss"), [("AtSpeedSModel", topk_alignment), ("AtSpeedRModel", tvd)])
def test_alignment_loss_equals_a_loop_over_beams_and_positions(taught, model_class, loss, constrained):
    target, trie, samples = taught
    student = tiny_llama(7, 1)
    batch = collate([samples[i] for i in range(3)])
    alignment = Alignment(make_objective(model_class, 3), trie, 0.7, 1.0, constrained)
    losses, recommend = [], []
    with torch.no_grad():
        tree = tree_logits(student, batch["input_ids"], batch["attention_mask"], batch["item"], batch["beams"])
        got = alignment.loss(tree, batch)
        for i in range(3):
            prompt, item = torch.tensor(samples.prompts[i]), samples.items[i]
            logits = student(torch.cat([prompt, item])[None]).logits[0, len(prompt) - 1 : -1]
            recommend += torch.nn.functional.cross_entropy(logits, item, reduction="none").tolist()
            for beam in batch["beams"][i]:
                q, p = (
                    m(torch.cat([prompt, beam])[None]).logits[0, len(prompt) - 1 : -1].softmax(-1)
                    for m in (student, target)
                )
                for t, state in enumerate(trie.walk(beam)[:-1]):
                    children = trie.children(state)
                    tokens = trie.tokens[children[children != trie.dead]]
                    a, b = q[t, tokens], p[t, tokens]
                    if not constrained:
                        a, b = (torch.cat([x, 1 - x.sum()[None]]) for x in (a, b))
                    losses.append(loss(a.log(), b.log(), *([3] if loss is topk_alignment else [])).item())
    expected = 0.3 * sum(recommend) / len(recommend) + 0.7 * sum(losses) / len(losses)
    assert len(losses) == 3 * 5 * LENGTH
    assert len(recommend) == 3 * (LENGTH + 1)
    assert got.item() == pytest.approx(expected, rel=2e-3)  # the teacher's numbers are float16


def accepted(drafter, target, trie, samples):
    """Mean levels that strict verification accepts in the first round."""
    prompts = [torch.tensor([prompt]) for prompt in samples.prompts]
    options = {"trie": trie, "width": 5, "draft": drafter.eval(), "draft_width": 8, "gamma": 3}
    return sum(beam_search(target, prompt, **options).accepted[0, 0].item() for prompt in prompts) / len(prompts)


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_every_objective_trains_and_alignment_on_beams_raises_acceptance(taught, tmp_path, model_class):
    target, trie, samples = taught
    drafter = tiny_llama(7, 1)
    before = accepted(drafter, target, trie, samples)
    alignment = Alignment(make_objective(model_class, 5), trie, alpha=0.9)
    schedule = Schedule(20, 16, 8, 1e-2, 0.0, 0, patience=20, seed=0, report_to="none")
    results = fit(drafter, alignment, samples, samples, tmp_path, schedule, world=1)
    batch = collate([samples[i] for i in range(len(samples))])
    with torch.no_grad():
        tree = tree_logits(
            drafter.eval(), batch["input_ids"], batch["attention_mask"], batch["item"],
            batch["beams"] if alignment.objective.needs_beams else None,
        )  # fmt: skip
        assert alignment.loss(tree, batch).item() == pytest.approx(results["eval_loss"], rel=1e-3), "the best weights"
    if alignment.objective.needs_beams:  # the true items of this test are random: nothing to learn from them
        assert accepted(drafter, target, trie, samples) > before


def test_accumulated_steps_equal_one_large_batch(taught, tmp_path):
    _, trie, samples = taught
    weights = []
    for micro in (4, 16):
        drafter = tiny_llama(7, 1)
        schedule = Schedule(2, 16, micro, 1e-2, 0.0, 0, patience=5, seed=0, report_to="none")
        fit(drafter, Alignment(make_objective("AtSpeedRModel", 5), trie, 0.7), samples, samples, tmp_path / str(micro),
            schedule, world=1)  # fmt: skip
        weights.append(torch.cat([w.flatten() for w in drafter.parameters()]))
    torch.testing.assert_close(*weights, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 10}, "not a multiple of 4"),
        ({"epochs": 0}, "at least 1"),
        ({"report_to": "slate"}, "choose from none, tensorboard, wandb"),
        ({"report_to": "wandb"}, "pip install wandb"),
    ],
)
def test_a_schedule_that_cannot_run_is_refused(change, message):
    good = {
        "epochs": 1, "batch_size": 8, "micro_batch_size": 2, "learning_rate": 1e-3, "weight_decay": 0.0,
        "warmup_steps": 0, "patience": 1, "seed": 0, "report_to": "none",
    }  # fmt: skip
    Schedule(**good).check(world=2)
    with pytest.raises(UserError, match=message):
        Schedule(**good | change).check(world=2)
