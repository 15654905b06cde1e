"""What the forwards of a request cost: what they read, and the seconds that a model takes for it on this machine."""

from __future__ import annotations

import time
from bisect import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from beamsd.models.reader import Reader
from beamsd.models.support import positions_of
from beamsd.tree import Tree

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIZES = (1, 16, 64, 256)  # tokens of the forwards that are timed; beyond, time is taken to be linear


@dataclass(frozen=True)
class Forwards:
    """Tokens per row that the forwards of one request read, without the prompt."""

    target: tuple[int, ...]
    draft: tuple[int, ...] = ()


@dataclass(frozen=True)
class Curve:
    """Seconds of a forward by the tokens it reads: linear between the `SIZES` that were measured, and beyond."""

    seconds: tuple[float, ...]

    @classmethod
    @torch.inference_mode()
    def measure(cls, model: PreTrainedModel) -> Curve:
        seconds = [0.0]
        longest = min(64, positions_of(model) or 64)
        for size in SIZES:
            ids = torch.arange(size, device=model.device)[None] % model.config.get_text_config().vocab_size
            tree, times = Tree.trunk(ids, torch.ones_like(ids), size), []
            for _ in range(3):
                start = time.perf_counter()
                reading = Reader(model, size, longest=min(size, longest)).catch_up(tree, size - 1)
                reading.states.flatten()[0].item()  # the device is done
                times.append(time.perf_counter() - start)
            seconds.append(max(min(times), seconds[-1]))
        return cls(tuple(seconds[1:]))

    def __call__(self, tokens: float) -> float:
        at = min(max(bisect(SIZES, tokens), 1), len(SIZES) - 1)
        (x0, x1), (y0, y1) = SIZES[at - 1 : at + 1], self.seconds[at - 1 : at + 1]
        return y0 + (y1 - y0) * (tokens - x0) / (x1 - x0)
