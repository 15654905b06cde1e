"""What the service counts, for Prometheus."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from genrec.runtime.machine import resident_bytes

RECENT = 1000  # requests that the quantiles are of
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ServiceMetrics:
    """Counters of one server process."""

    def __init__(self, in_flight: Callable[[], int], process: int):
        """in_flight: requests that wait or are decoded. process: the one that started the others of the service."""
        self.registry = CollectorRegistry()
        self._recent: deque[float] = deque(maxlen=RECENT)
        self.requests = Counter(
            "atspeed_requests", "Requests to /recommend, by status of the answer", ["status"], registry=self.registry
        )
        self.seconds = Histogram(
            "atspeed_request_seconds", "Seconds from a request's arrival to its list", buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            gauge = Gauge(
                f"atspeed_request_seconds_{name}", f"{name} of the last {RECENT} lists, in seconds",
                registry=self.registry,
            )  # fmt: skip
            gauge.set_function(partial(self.quantile, share))
        Gauge("atspeed_in_flight", "Requests that wait or are decoded", registry=self.registry).set_function(in_flight)
        self.batch_size = Histogram(
            "atspeed_batch_size", "Requests of the batch that a request was decoded in", buckets=SIZES,
            registry=self.registry,
        )  # fmt: skip
        self.target_calls = Counter(
            "atspeed_target_calls", "Forwards of the target, by request", registry=self.registry
        )
        self.accepted_levels = Counter(
            "atspeed_accepted_levels", "Drafted levels that the target accepted, by request", registry=self.registry
        )
        memory = Gauge(
            "atspeed_resident_bytes", "Memory of the service's processes, what they share counted once",
            registry=self.registry,
        )  # fmt: skip
        memory.set_function(partial(resident_bytes, process))
        self.reloads = Counter(
            "atspeed_reloads", "Reloads of models or catalogue, by result", ["result"], registry=self.registry
        )

    def listed(self, seconds: float, answer: dict) -> None:
        """A request has got its list."""
        self._recent.append(seconds)
        self.seconds.observe(seconds)
        self.batch_size.observe(answer["batch_size"])
        self.target_calls.inc(answer["target_calls"])
        self.accepted_levels.inc(answer["accepted_levels"])

    def quantile(self, share: float) -> float:
        """Seconds that this share of the recent lists took at most; 0 before the first."""
        ordered = sorted(self._recent)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0

    def page(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
