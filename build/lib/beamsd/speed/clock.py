"""Timers of named spans."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

FOLDED = 1024  # spans after which those that are over are summed, so that a clock that nobody reads stays small


class Clock:
    """Sums named spans. On CUDA it records events, so it does not stall the stream until it is read."""

    def __init__(self, device: torch.device | str = "cpu"):
        self._device = torch.device(device)
        self._total: dict[str, float] = defaultdict(float)
        self._spans: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []  # on CUDA, not summed yet

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self._device.type != "cuda":
            start = time.perf_counter()
            yield
            self._total[name] += time.perf_counter() - start
            return
        first = self._event()
        yield
        self._spans.append((name, first, self._event()))
        if len(self._spans) >= FOLDED:
            self._fold(sum(last.query() for _, _, last in self._spans))  # they end in order

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _fold(self, count: int) -> None:
        for name, first, last in self._spans[:count]:
            self._total[name] += first.elapsed_time(last) / 1e3
        del self._spans[:count]

    def seconds(self) -> dict[str, float]:
        """Seconds spent under each name so far. Waits for the device."""
        if self._spans:
            torch.cuda.synchronize(self._device)
            self._fold(len(self._spans))
        return dict(self._total)
