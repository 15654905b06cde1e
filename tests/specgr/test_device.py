"""SpecGR on a device: the CPU's lists, losses and gradients, nothing on the wrong device, and no host sync but those
written down."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fake_cuda import CUDA, move
from genrec.data.dataset import Sample
from specgr.configuration.config import ContrastivePlan
from specgr.data.codes import NOTHING
from specgr.data.examples import Examples
from specgr.decoding.item_drafters import Drafted, EncoderDrafter, Histories, UniSRecDrafter, item_embeddings
from specgr.decoding.neighbours import CodeNeighbourDrafter, NeighbourDrafter
from specgr.decoding.prefixes import Prefixes
from specgr.decoding.specgr_search import SpecGR, SpecGRSettings
from specgr.decoding.tiger_search import BeamSearch
from specgr.decoding.verifier import TigerVerifier
from specgr.evaluation.evaluation import evaluate
from specgr.networks.unisrec import UniSRec, UniSRecSettings
from specgr.training.loss_modules import Stage1Loss, Stage2Loss, TigerLoss, UniSRecLoss
from tiny_tiger import random_codes, random_histories, random_tiger

ROOT = Path(__file__).parents[2]
N_ITEMS, BATCH, K = 60, 4, 5
SETTINGS = SpecGRSettings(draft_size=6, num_beams=10, threshold=-3.5)
ENCODER = {"tiger.py:encode": 1}  # transformers asks whether anything is masked
UNISREC = {"unisrec.py:histories": 1}  # the distinct items of the batch
PROMPTS, ROUNDS = "settings.py:_read_prompts", "beam_search.py:_play"  # see the decoder's test


def parts(to_device=lambda part: part):
    """Everything that recommenders are made of: codes, TIGER, text embeddings, UniSRec, which items were seen."""
    codes = random_codes(N_ITEMS)
    torch.manual_seed(0)
    unisrec = UniSRec(UniSRecSettings(6, 5, hidden=8, inner=8, layers=1, experts=2)).eval()
    texts, seen = torch.randn(N_ITEMS, 6), torch.arange(N_ITEMS) % 3 > 0
    return [to_device(part) for part in (codes, random_tiger(codes), texts, unisrec, seen)]


def there(part):
    return move(part) if isinstance(part, torch.nn.Module) else part.to(CUDA)


def make(name, codes, tiger, texts, unisrec, seen):
    verifier, prefixes = TigerVerifier(tiger, codes), Prefixes.of(codes)
    drafters = {
        "encoder": lambda: EncoderDrafter(tiger, item_embeddings(tiger, codes)),
        "neighbours": lambda: CodeNeighbourDrafter(codes),
        "texts": lambda: NeighbourDrafter(texts),
        "UniSRec": lambda: UniSRecDrafter.of(unisrec, texts),
    }
    what, _, drafter = name.partition(", ")
    if what == "TIGER":
        free = drafter == "unconstrained"
        return BeamSearch(verifier, prefixes, not free, "none" if free or not drafter else drafter)
    if what == "alone":
        return Drafted(verifier if drafter == "encoder" else Histories(), drafters[drafter]())
    return SpecGR(verifier, drafters[drafter](), prefixes, seen, SETTINGS)


@pytest.mark.parametrize(
    ("name", "syncs"),
    [
        ("TIGER", ENCODER | {PROMPTS: 1, ROUNDS: 5}),
        ("TIGER, trie", ENCODER | {PROMPTS: 1, ROUNDS: 2}),
        ("TIGER, unconstrained", ENCODER | {PROMPTS: 1, ROUNDS: 5}),
        ("SpecGR, encoder", ENCODER),
        ("SpecGR, neighbours", ENCODER),
        ("SpecGR, texts", ENCODER),
        ("SpecGR, UniSRec", ENCODER | UNISREC),
        ("alone, encoder", ENCODER),
        ("alone, neighbours", {}),
        ("alone, UniSRec", UNISREC),
    ],
)
def test_recommenders_and_their_evaluation(device, name, syncs):
    histories = random_histories(N_ITEMS, BATCH)
    samples = [Sample(i, tuple(x for x in row if x != NOTHING), (i,)) for i, row in enumerate(histories.tolist())]
    on_cpu, on_device = make(name, *parts()), make(name, *parts(there))
    expected = on_cpu.recommend(histories, K)
    histories = histories.to(CUDA)
    device.forget()
    found = on_device.recommend(histories, K)
    if expected.rounds is not None:
        assert torch.equal(found.rounds.cpu(), expected.rounds)
        syncs = syncs | {"specgr_search.py:recommend": int(expected.rounds.max())}  # which rows are done?
    assert device.syncs == syncs
    assert device.copies == {}
    assert torch.equal(found.items.cpu(), expected.items)
    torch.testing.assert_close(found.scores.cpu(), expected.scores)
    seen = parts()[-1]
    device.forget()
    found, expected = (
        evaluate(recommender, samples, mask, batch_size=3, cutoffs=(1, K))
        for recommender, mask in ((on_device, seen.to(CUDA)), (on_cpu, seen))
    )
    assert found.quality == expected.quality
    assert device.copies == {"evaluation.py:batches_of": 2}


LOSSES = ("TIGER", "UniSRec", "stage 1", "stage 2")


def loss_module(name, codes, tiger, texts, unisrec, seen):
    """One of LOSSES. The generation loss is of all rows, so that the division into processes changes nothing."""
    examples = Examples(random_histories(N_ITEMS, BATCH), torch.arange(3, 3 + BATCH))
    plan = ContrastivePlan(generation_batch_size=BATCH)
    return {
        "TIGER": lambda: TigerLoss(tiger, codes, examples),
        "UniSRec": lambda: UniSRecLoss(unisrec, texts, seen, examples),
        "stage 1": lambda: Stage1Loss(tiger, codes, examples, plan),
        "stage 2": lambda: Stage2Loss(tiger, codes, examples, plan, item_embeddings(tiger, codes).clone(), seen),
    }[name]()


def gradients(model):
    return [weight.grad.cpu() for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize(
    ("name", "syncs"),
    [
        # How long are the four parts of like length? And transformers asks of each whether anything is masked.
        ("TIGER", {"tiger.py:encode_by_length": 1, "tiger.py:encode": 4}),
        ("UniSRec", {"unisrec.py:histories": 1}),
        # Also the encoder over the items.
        ("stage 1", {"tiger.py:encode_by_length": 1, "tiger.py:encode": 5}),
        ("stage 2", {"tiger.py:encode_by_length": 1, "tiger.py:encode": 4}),
    ],
)
@pytest.mark.parametrize("moved", [False, True], ids=["rows on the CPU", "rows moved"])
def test_losses_and_gradients(device, name, syncs, moved):
    def step(count, rows, *made_of):
        model = loss_module(name, *made_of)
        model(rows)  # makes what is made once
        count()
        losses = model(rows)
        losses.sum().backward()
        return losses.detach().cpu(), gradients(model)

    rows = torch.arange(BATCH)
    expected = step(lambda: None, rows, *parts())
    found = step(device.forget, rows.to(CUDA) if moved else rows, *parts(there))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert device.syncs == syncs
    assert device.copies == ({} if moved else {"loss_modules.py:batch": 1})  # the rows


@pytest.mark.parametrize("name", ["stage 1", "stage 2"])
def test_the_generation_loss_of_other_rows_is_that_of_a_batch_of_them(name):
    model, rows, generated = loss_module(name, *parts()), torch.arange(3), torch.arange(2, BATCH)
    both = model(rows, generated)
    torch.testing.assert_close(both[0], model(rows)[0])
    torch.testing.assert_close(both[1], model(generated)[1])


def test_two_processes_whose_inputs_are_moved_are_one(tmp_path):
    """As on two GPUs: DistributedDataParallel moves what `forward` is given to the device of its process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, ROOT / "tests/specgr/device_worker.py", tmp_path], text=True, capture_output=True, check=False,
        env={"PYTHONPATH": f"{ROOT}/code:{ROOT}/tests", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in LOSSES:
        whole = loss_module(name, *parts())
        losses = whole(torch.arange(BATCH))
        losses.sum().backward()
        found = torch.load(tmp_path / f"{name}.pt")
        torch.testing.assert_close(found, (losses.detach(), gradients(whole)), atol=1e-4, rtol=1e-3)
