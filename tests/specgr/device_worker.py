"""Started as two processes by test_device.py: python device_worker.py FOLDER

Each computes the losses and gradients of its half of the batch on the tests' device, by gloo, and the first saves the
means. DistributedDataParallel itself takes no tensors of such a device, so what it does is done here, in the same
order: the inputs are moved, and gradients averaged.
"""

import sys
from pathlib import Path

import torch
from test_device import BATCH, LOSSES, gradients, loss_module, parts, there
from torch import distributed
from torch.distributed.utils import _to_kwargs

from fake_cuda import CUDA, fake_cuda
from genrec.runtime.cli import leave_process_group
from specgr.training.fitting import new_accelerator


def main(folder: Path) -> None:
    rank, size = distributed.get_rank(), distributed.get_world_size()
    for name in LOSSES:
        with fake_cuda():
            model = loss_module(name, *parts(there))
            ((rows,),), _ = _to_kwargs((torch.arange(BATCH)[rank::size],), {}, CUDA, False)
            losses = model(rows)
            losses.sum().backward()
            found = [losses.detach().cpu(), *gradients(model)]
        for each in found:
            distributed.all_reduce(each)
        if rank == 0:
            torch.save((found[0] / size, [each / size for each in found[1:]]), folder / f"{name}.pt")


if __name__ == "__main__":
    new_accelerator()
    main(Path(sys.argv[1]))
    leave_process_group()
