"""Requests to a service as its users would send them, and what came of each."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle

import httpx2
import numpy as np

PATIENCE = 120  # seconds that a client waits for an answer
REFUSED = 503


@dataclass
class LoadResult:
    """What came of the requests of one load."""

    load: str
    seconds: float = 0.0  # from the first request to the last answer
    latencies: list[float] = field(default_factory=list)  # seconds of each list, from when it was to be asked for
    batch_sizes: list[int] = field(default_factory=list)
    refused: int = 0  # 503
    failures: list[str] = field(default_factory=list)  # any other answer, or none
    lists: dict[int, list] = field(default_factory=dict)  # number of a history -> its first list
    changed: int = 0  # lists that differ from the first of their history
    megabytes: list[float] = field(default_factory=list)  # memory of the service, from beginning to end

    def row(self) -> dict[str, object]:
        """A line of the table."""
        p50, p90, p99 = (
            (np.quantile(self.latencies, (0.5, 0.9, 0.99)) * 1000).round(1) if self.latencies else [np.nan] * 3
        )
        return {
            "load": self.load, "requests": len(self.latencies) + self.refused + len(self.failures),
            "lists": len(self.latencies), "refused": self.refused, "failures": len(self.failures),
            "lists_per_second": round(len(self.latencies) / self.seconds, 1) if self.seconds else np.nan,
            "p50_ms": p50, "p90_ms": p90, "p99_ms": p99,
            "mean_batch": round(float(np.mean(self.batch_sizes)), 1) if self.batch_sizes else np.nan,
            "megabytes_first": self.megabytes[0] if self.megabytes else np.nan,
            "megabytes_last": self.megabytes[-1] if self.megabytes else np.nan,
        }  # fmt: skip


class LoadTest:
    """Clients of a service that ask for the lists of given histories, in turn."""

    def __init__(self, url: str, histories: Sequence[list], k: int, seed: int):
        self.url, self.histories, self.k, self.seed = url.rstrip("/"), histories, k, seed

    async def closed(self, clients: int, seconds: float) -> LoadResult:
        """Closed loop: so many clients, each of which asks again when it has its answer."""
        result, turns = LoadResult(f"{clients} client{'s' if clients > 1 else ''}"), self._turns()
        end = time.perf_counter() + seconds

        async def ask(client: httpx2.AsyncClient) -> None:
            while (begin := time.perf_counter()) < end:
                await self._ask(client, next(turns), begin, result)

        async with self._session(result) as client:
            await asyncio.gather(*(ask(client) for _ in range(clients)))
        return result

    async def open(self, rate: float, seconds: float) -> LoadResult:
        """Open loop: requests arrive at random (Poisson), `rate` a second, whatever becomes of those before. Latencies
        count from when a request was to arrive."""
        result, turns, chance = LoadResult(f"{rate:g} a second"), self._turns(), random.Random(self.seed)
        async with self._session(result) as client:
            arrival, end, asked = time.perf_counter(), time.perf_counter() + seconds, []
            while (arrival := arrival + chance.expovariate(rate)) < end:
                await asyncio.sleep(max(arrival - time.perf_counter(), 0))
                asked.append(asyncio.create_task(self._ask(client, next(turns), arrival, result)))
            await asyncio.gather(*asked)
        return result

    def _turns(self) -> Iterator[int]:
        order = list(range(len(self.histories)))
        random.Random(self.seed).shuffle(order)
        return cycle(order)

    @asynccontextmanager
    async def _session(self, result: LoadResult) -> AsyncIterator[httpx2.AsyncClient]:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx2.AsyncClient(timeout=PATIENCE, limits=limits) as client:
            result.megabytes.append(await self._memory(client))
            begin = time.perf_counter()
            yield client
            result.seconds = time.perf_counter() - begin
            result.megabytes.append(await self._memory(client))

    async def _memory(self, client: httpx2.AsyncClient) -> float:
        """Megabytes of the service's processes; nan where it does not say."""
        found = re.search(r"^atspeed_resident_bytes ([0-9.e+]+)$", (await client.get(f"{self.url}/metrics")).text, re.M)
        return round(float(found[1]) / 1e6, 1) if found else float("nan")

    async def _ask(self, client: httpx2.AsyncClient, number: int, begin: float, result: LoadResult) -> None:
        try:
            asked = {"history": self.histories[number], "k": self.k}
            response = await client.post(f"{self.url}/recommend", json=asked)
        except httpx2.HTTPError as error:
            result.failures.append(f"{type(error).__name__}: {error}")
            return
        if response.status_code == REFUSED:
            result.refused += 1
            await asyncio.sleep(0.1)  # a client that is told to wait waits, if not as long
        elif response.status_code != 200:
            result.failures.append(f"{response.status_code}: {response.text[:200]}")
        else:
            answer = response.json()
            result.latencies.append(time.perf_counter() - begin)
            result.batch_sizes.append(answer["batch_size"])
            result.changed += result.lists.setdefault(number, answer["items"]) != answer["items"]
