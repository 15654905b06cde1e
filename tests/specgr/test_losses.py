"""The losses against naive loops, and two processes against one."""

import math
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import normalize

from conftest import ROOT
from specgr.training.contrastive import first_row, gather, generation_loss, info_nce, item_cross_entropy


def batch(size=6, width=5):
    generator = torch.Generator().manual_seed(0)
    histories, items = (normalize(torch.randn(size, width, generator=generator), dim=-1) for _ in range(2))
    return histories, items, torch.tensor([4, 7, 4, 1, 7, 4])


def test_info_nce_leaves_out_the_same_item_elsewhere_in_the_batch():
    histories, items, numbers = batch()
    losses = info_nce(histories, items, numbers, items, numbers, 0, 0.07)
    for row in range(len(numbers)):
        score = [float(histories[row] @ item) / 0.07 for item in items]
        against = [score[i] for i in range(len(numbers)) if i == row or numbers[i] != numbers[row]]
        assert losses[row].item() == pytest.approx(
            math.log(sum(map(math.exp, against))) - score[row], rel=1e-4, abs=1e-5
        )


def test_info_nce_of_a_batch_of_one_item_is_nothing():
    histories, items, _ = batch()
    same = torch.full((len(items),), 3)
    assert info_nce(histories, items, same, items, same, 0, 0.07).abs().max() < 1e-5


def test_item_cross_entropy_and_generation_loss_are_their_formulas():
    histories, items, _ = batch()
    losses = item_cross_entropy(histories[:2], items, torch.tensor([3, 0]), 0.1)
    for row, item in enumerate((3, 0)):
        probabilities = (histories[row] @ items.T / 0.1).softmax(-1)
        assert losses[row].item() == pytest.approx(-math.log(probabilities[item]), rel=1e-4)
    logits, tokens = torch.randn(2, 3, 7), torch.tensor([[1, 0, 6], [2, 2, 2]])
    expected = [[-math.log(logits[b, i].softmax(-1)[tokens[b, i]]) for i in range(3)] for b in range(2)]
    torch.testing.assert_close(generation_loss(logits, tokens), torch.tensor(expected).mean(-1), atol=1e-4, rtol=1e-4)


def loss_of(embed, rows):
    """The loss of these rows of the batch, through a layer whose gradient is compared."""
    inputs, targets, numbers = batch()
    histories, items = normalize(embed(inputs[rows]), dim=-1), normalize(embed(targets[rows]), dim=-1)
    own = numbers[rows]
    return info_nce(histories, items, own, gather(items), gather(own), first_row(len(own)), 0.07).mean()


def layer():
    torch.manual_seed(1)
    return torch.nn.Linear(5, 4, bias=False)


WORKER = """
import torch
from torch.nn.parallel import DistributedDataParallel
from genrec.runtime.cli import leave_process_group
from conftest import assert_waits_long
from specgr.training.fitting import new_accelerator
from test_losses import layer, loss_of
new_accelerator()
assert_waits_long()
rank, embed = torch.distributed.get_rank(), layer()
class Both(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = embed
    def forward(self, rows):
        return loss_of(self.embed, rows)
shared = DistributedDataParallel(Both())
loss = shared(torch.arange(6)[rank::2])
loss.backward()
torch.distributed.all_reduce(loss.detach())
if rank == 0:
    torch.save((loss.detach() / 2, embed.weight.grad), __import__("sys").argv[1])
del shared, loss  # they hold on to the group
leave_process_group()
"""


def test_two_processes_with_half_a_batch_each_are_one_with_all_of_it(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", tmp_path / "worker.py",
         tmp_path / "result.pt"],
        env={"PYTHONPATH": f"{ROOT}/code:{ROOT}/tests:{ROOT}/tests/specgr", "OMP_NUM_THREADS": "1"},
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    embed = layer()
    loss = loss_of(embed, torch.arange(6))
    loss.backward()
    together, gradient = torch.load(tmp_path / "result.pt")
    torch.testing.assert_close(together, loss.detach())
    torch.testing.assert_close(gradient, embed.weight.grad)
