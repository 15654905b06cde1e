"""State of this process among those of a stage."""

import torch
from accelerate import PartialState

from genrec.runtime.cli import GROUP_TIMEOUT


def this_process() -> PartialState:
    """Which of how many processes this is: on GPUs, or by gloo on the CPU, where PartialState() alone sees one only.

    The first call of a process makes the group of all of them, which later ones, the Trainer's too, find there.
    """
    return PartialState(cpu=not torch.cuda.is_available(), timeout=GROUP_TIMEOUT)
