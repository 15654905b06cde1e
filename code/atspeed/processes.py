"""State of this process among those of a stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import PartialState


def this_process() -> PartialState:
    """Which of how many processes this is: on GPUs, or by gloo on the CPU, where PartialState() alone sees one only."""
    from accelerate import PartialState  # here, since gpu_check does without

    return PartialState(cpu=not torch.cuda.is_available())
