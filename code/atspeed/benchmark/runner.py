"""Runs every method on every request, checks that the lists agree, and records costs."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence, Set
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from atspeed.benchmark.memory import peak_memory
from atspeed.benchmark.methods import DecodedLists, Method
from atspeed.prompts import left_pad
from beamsd import Clock
from beamsd.models.numerics import exact_float32
from genrec.runtime.machine import free_memory
from genrec.runtime.progress import progress_bar

logger = logging.getLogger(__name__)

DRAWS = 2**20  # of a request at most: no two requests share a seed


@dataclass
class Record:
    """One request, decoded by one method at one K."""

    request: int  # index of the sample
    method: str
    width: int  # K
    sequences: list[list[int]]  # token ids of the legal ones, best first
    seconds: float  # of its batch, divided by the requests in it
    target_calls: int
    accepted: float | None  # mean levels accepted a round; None without a draft
    target_tokens: int | None  # that the target read, the prompt included; None where nobody counts
    draft_tokens: int | None
    parts: dict[str, float] = field(default_factory=dict)  # seconds by part: draft, target, verify
    tie: bool = False  # lists or scores differ in this precision, and agree in float64
    settled: bool = True  # False where they differ, and float64 could not be asked for want of memory
    draw: int = 0  # which of the draws of a method that draws at random
    rounds: list[int] = field(default_factory=list)  # levels accepted, round by round
    scores: list[float] | None = None  # cumulative log-probabilities of the sequences; None where nobody gives them


class MethodBenchmark:
    """Models and methods, ready to be compared on batches of prompts."""

    def __init__(
        self, models: Sequence[PreTrainedModel | None], items: Tensor, make: Callable[..., dict[str, Method]]
    ):  # fmt: skip
        """models: the target, then drafts. items: (n_items, L) token ids. make: the methods of such models.

        In float32 the lists of all methods that promise it must be equal; else they are counted. What
        differs by rounding is told from what is wrong in float64, on the CPU, if the models fit into its memory so.
        """
        self.models, self.make, self.methods = models, make, make(*models)
        assert models[0] is not None
        self.device, self.exact = models[0].device, models[0].dtype == torch.float32
        self.legal = {tuple(item) for item in items.tolist()}
        self._double: dict[str, Method] | None = None

    def run(
        self, prompts: Sequence[Sequence[int]], requests: Sequence[int], widths: Sequence[int], *, batch_size: int,
        warmup: int, done: Set[tuple[int, int]] = frozenset(),
        keep: Callable[[list[Record]], object] = lambda records: None, draws: int = 1,
        drawn: Set[int] | None = None,
    ) -> list[Record]:  # fmt: skip
        """Decode `requests` (indices of `prompts`) at every K, all methods interleaved, after `warmup` batches.

        done: what is left out, as (K, request). keep: is given the records of every batch as soon as they are there.
        draws: how often methods that draw at random answer a request, each time with another seed. drawn: the requests
        that they answer; None is all.
        Raises RuntimeError if, in float32, lists differ by more than rounding, or an item is not in the catalogue.
        """
        with exact_float32():  # TF32 would be another model's lists
            return self._run(prompts, requests, widths, batch_size, warmup, done, keep, draws, drawn)

    def _run(
        self, prompts: Sequence[Sequence[int]], requests: Sequence[int], widths: Sequence[int], batch_size: int,
        warmup: int, done: Set[tuple[int, int]], keep: Callable[[list[Record]], object], draws: int,
        drawn: Set[int] | None,
    ) -> list[Record]:  # fmt: skip
        left = {width: [i for i in requests if (width, i) not in done] for width in widths}
        records = []
        bar = progress_bar(sum(map(len, left.values())), "inference", "request")
        for width, mine in left.items():
            batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
            if not batches:
                continue
            for batch in batches[:warmup]:
                self._decode(prompts, {name: batch for name in self.methods}, width, turn=0, draws=1)
            for method in self.methods.values():
                for turn in range(method.warmup):
                    self._timed(method, prompts, batches[turn % len(batches)], width)
            for turn, batch in enumerate(batches):
                chosen = [request for request in batch if drawn is None or request in drawn]
                asked = {name: chosen if method.draws else batch for name, method in self.methods.items()}
                measured = list(self._batch(prompts, asked, batch, width, turn, draws))
                keep(measured)
                records += measured
                bar.update(len(batch))
        bar.close()
        return records

    def memory(self, prompts: Sequence[Sequence[int]], width: int) -> dict[str, float | None]:
        """MB that every method takes for one batch, at its peak, on top of models and trie."""
        return {
            name: None
            if method.peer
            else peak_memory(partial(self._timed, method, prompts, range(len(prompts)), width), self.device)
            for name, method in self.methods.items()
        }

    def _batch(
        self, prompts: Sequence[Sequence[int]], asked: dict[str, list[int]], requests: list[int], width: int, turn: int,
        draws: int,
    ) -> Iterator[Record]:  # fmt: skip
        """asked: of each method, those of the requests that it is to answer."""
        decoded = self._decode(prompts, asked, width, turn, draws)
        rows = {job: _sequences(lists) for job, (lists, _, _) in decoded.items()}
        for job, found in rows.items():
            for request, sequences in zip(asked[job[0]], found, strict=True):
                if not self.legal.issuperset(sequences) and not self.methods[job[0]].peer:
                    raise RuntimeError(
                        f"request {request}, K {width}: {job[0]} recommends what is not in the catalogue"
                    )
        for row, request in enumerate(requests):
            equal = {name: rows[name, 0][row] for name, method in self.methods.items() if method.promises}
            scored = {name: decoded[name, 0][0] for name in equal}
            tie = self.exact and (len(set(map(tuple, equal.values()))) > 1 or not self._have_equal_scores(scored, row))
            settled = not tie or self._settle(prompts[request], request, width, equal)
            for (name, draw), (lists, seconds, parts) in decoded.items():
                if request not in asked[name]:
                    continue
                row, size = asked[name].index(request), len(asked[name])
                rounds = [] if lists.accepted is None else [a for a in lists.accepted[row].tolist() if a >= 0]
                yield Record(
                    request=request, method=name, width=width, sequences=[list(s) for s in rows[name, draw][row]],
                    seconds=seconds / size, target_calls=int(lists.target_calls[row]),
                    accepted=sum(rounds) / len(rounds) if rounds else None, target_tokens=lists.target_tokens,
                    draft_tokens=lists.draft_tokens, parts={part: value / size for part, value in parts.items()},
                    tie=tie, settled=settled, draw=draw, rounds=rounds if lists.seconds is None else [],
                    scores=None if lists.scores is None else lists.scores[row, : lists.found[row]].tolist(),
                )  # fmt: skip

    def _decode(
        self, prompts: Sequence[Sequence[int]], asked: dict[str, list[int]], width: int, turn: int, draws: int
    ) -> dict[tuple[str, int], tuple[DecodedLists, float, dict[str, float]]]:
        """Lists, seconds and seconds by part of every method and draw; who goes first changes from turn to turn."""
        jobs = [
            (name, draw)
            for name, method in self.methods.items() if asked[name]
            for draw in range(draws if method.draws else 1)
        ]  # fmt: skip
        first = turn % len(jobs)
        decoded = {
            (name, draw): self._timed(self.methods[name], prompts, asked[name], width, draw)
            for name, draw in jobs[first:] + jobs[:first]
        }
        return {job: decoded[job] for job in jobs}

    def _timed(
        self, method: Method, prompts: Sequence[Sequence[int]], requests: Sequence[int], width: int, draw: int = 0
    ) -> tuple[DecodedLists, float, dict[str, float]]:
        ids, mask = (tensor.to(self.device) for tensor in left_pad([prompts[i] for i in requests]))
        clock, seeds = Clock(ids.device), [DRAWS * request + draw for request in requests]
        start = now(ids.device)
        lists = method.decode(ids, mask, width, clock, seeds)
        seconds = now(ids.device) - start
        return lists, seconds if lists.seconds is None else lists.seconds, clock.seconds()

    def _have_equal_scores(self, decoded: dict[str, DecodedLists], row: int) -> bool:
        """Whether equal lists have equal scores, within 1e-4."""
        scores = [lists.scores[row, : lists.found[row]] for lists in decoded.values() if lists.scores is not None]
        return all(torch.allclose(scores[0], other, atol=1e-4, rtol=1e-5) for other in scores[1:])

    def _settle(self, prompt: Sequence[int], request: int, width: int, found: dict[str, list]) -> bool:
        """Decode in float64 a request whose lists or scores differ: if they still do, it is no tie but an error.

        Returns whether there was the memory for it; if not, nothing is known.
        """
        if self._double is None and not self._fits_in_float64():
            logger.warning(
                f"request {request}, K {width}: the lists or scores differ, and this machine has too little memory for "
                "the models in float64, which would tell a tie from an error"
            )
            return False
        if self._double is None:
            self._double = self.make(*(model and in_float64(model) for model in self.models))
        ids, mask = left_pad([prompt])
        exact = {name: self._double[name].decode(ids, mask, width, Clock(ids.device), [0]) for name in found}
        if len({tuple(_sequences(lists)[0]) for lists in exact.values()}) > 1:
            raise RuntimeError(f"request {request}, K {width}: the lists differ, in float64 too: {found}")
        if not self._have_equal_scores(exact, 0):
            raise RuntimeError(f"request {request}, K {width}: right lists with other scores, in float64 too")
        logger.info(f"request {request}, K {width}: a tie in float32; the lists agree in float64")
        return True

    def _fits_in_float64(self) -> bool:
        numbers = sum(p.numel() for model in self.models if model is not None for p in model.parameters())
        return 8 * numbers < free_memory()


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model in float64 on the CPU, made without another on the model's own device."""

    def copied(tensor: Tensor) -> Tensor:
        on_cpu = tensor.detach().cpu()
        return on_cpu.double() if on_cpu.is_floating_point() else on_cpu.clone()

    memo: dict[int, Tensor] = {id(buffer): copied(buffer) for buffer in model.buffers()}
    memo |= {id(weight): nn.Parameter(copied(weight), requires_grad=False) for weight in model.parameters()}
    return deepcopy(model, memo)


def _sequences(lists: DecodedLists) -> list[list[tuple[int, ...]]]:
    """The legal sequences of every request, best first."""
    return [
        [tuple(sequence) for sequence in sequences[:found]]
        for sequences, found in zip(lists.sequences.tolist(), lists.found.tolist(), strict=True)
    ]


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
