"""State of this process among those of a stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from genrec.runtime.cli import GROUP_TIMEOUT

if TYPE_CHECKING:
    from accelerate import PartialState

# accelerate is imported late, since gpu_check does without.


def this_process() -> PartialState:
    """Which of how many processes this is: on GPUs, or by gloo on the CPU, where PartialState() alone sees one only.

    The first call of a process makes the group of all of them, which later ones, the Trainer's too, find there.
    """
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=GROUP_TIMEOUT)


def training_device() -> torch.device:
    """Where a model that is to be trained is loaded: this process's device, or, under FSDP, which moves no more than a
    shard there, the CPU."""
    from accelerate.utils import parse_flag_from_env

    return torch.device("cpu") if parse_flag_from_env("ACCELERATE_USE_FSDP") else this_process().device
