"""The processes that share a stage."""

import atexit
from functools import cache

import torch
from accelerate import PartialState


@cache
def this_process() -> PartialState:
    """Which of how many processes this is: on GPUs, or by gloo on the CPU, where PartialState() alone sees one only."""
    state = PartialState(cpu=not torch.cuda.is_available())
    # A process that ends while threads of the group still run may abort, its work done.
    atexit.register(state.destroy_process_group)
    return state
