"""Speculative beam search that says where its time goes, under the names of BeamSD's release."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch

from atspeed.beamsd import BeamSDOutput, beam_search_by_SD
from beamsd import Clock

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Clock", "Timer", "beam_search_by_SD_4timing"]


class Timer:
    """The seconds that a block takes: `with Timer() as timer: …`, then `timer.time_cost`.

    Over a function that returns a dict, as `@Timer()`, they become its entry `time_cost`.
    """

    def __init__(self, func: str = "", sync_cuda: bool = True, syn_device: int = 0):
        """func: a name for the reader of the code. sync_cuda: wait for the work of the GPU `syn_device`, if there is
        one."""
        self.func, self.sync_cuda, self.syn_device = func, sync_cuda and torch.cuda.is_available(), syn_device

    def __enter__(self) -> Timer:
        self._start = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self.time_cost = self._now() - self._start

    def __call__(self, function: Callable[..., dict]) -> Callable[..., dict]:
        @wraps(function)
        def timed(*args: object, **kwargs: object) -> dict:
            with self:
                result = function(*args, **kwargs)
            result["time_cost"] = self.time_cost
            return result

        return timed

    def _now(self) -> float:
        if self.sync_cuda:
            torch.cuda.synchronize(self.syn_device)
        return time.perf_counter()


def beam_search_by_SD_4timing(
    target_model: PreTrainedModel, draft_model: PreTrainedModel, *args: Any, **options: Any
) -> BeamSDOutput:
    """`beam_search_by_SD`, whose arguments it takes, with a clock: `time_cost` of the output holds all seconds,
    `draft_time_cost`, `target_time_cost` and `verify_time_cost` those of the parts, as `seconds` does."""
    clock = Clock(target_model.device)
    with Timer(sync_cuda=target_model.device.type == "cuda", syn_device=target_model.device) as timer:
        output = beam_search_by_SD(target_model, draft_model, *args, clock=clock, **options)
    output["seconds"], output["time_cost"] = clock.seconds(), timer.time_cost
    for part in ("draft", "target", "verify"):
        output[f"{part}_time_cost"] = output["seconds"].get(part, 0.0)
    return output
