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
    target_tokens: int  # that the target read, the prompt included
    draft_tokens: int
    parts: dict[str, float] = field(default_factory=dict)  # seconds by part: draft, target, verify
    tie: bool = False  # lists or scores differ in this precision, and agree in float64
    settled: bool = True  # False where they differ, and float64 could not be asked for want of memory


class MethodBenchmark:
    """Models and methods, ready to be compared on batches of prompts."""

    def __init__(
        self, models: Sequence[PreTrainedModel | None], items: Tensor, make: Callable[..., dict[str, Method]]
    ):  # fmt: skip
        """models: the target, then drafts. items: (n_items, L) token ids. make: the methods of such models.

        In float32 the lists of all methods but those that draw at random must be equal; else they are counted. What
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
        keep: Callable[[list[Record]], object] = lambda records: None,
    ) -> list[Record]:  # fmt: skip
        """Decode `requests` (indices of `prompts`) at every K, all methods interleaved, after `warmup` batches.

        done: what is left out, as (K, request). keep: is given the records of every batch as soon as they are there.
        Raises RuntimeError if, in float32, lists differ by more than rounding, or an item is not in the catalogue.
        """
        with exact_float32():  # TF32 would be another model's lists
            return self._run(prompts, requests, widths, batch_size, warmup, done, keep)

    def _run(
        self, prompts: Sequence[Sequence[int]], requests: Sequence[int], widths: Sequence[int], batch_size: int,
        warmup: int, done: Set[tuple[int, int]], keep: Callable[[list[Record]], object],
    ) -> list[Record]:  # fmt: skip
        left = {width: [i for i in requests if (width, i) not in done] for width in widths}
        records = []
        bar = progress_bar(sum(map(len, left.values())), "inference", "request")
        for width, mine in left.items():
            batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
            if not batches:
                continue
            for batch in batches[:warmup]:
                self._decode([prompts[i] for i in batch], width, turn=0)
            for method in self.methods.values():
                for turn in range(method.warmup):
                    self._timed(method, [prompts[i] for i in batches[turn % len(batches)]], width)
            for turn, batch in enumerate(batches):
                measured = list(self._batch([prompts[i] for i in batch], batch, width, turn))
                keep(measured)
                records += measured
                bar.update(len(batch))
        bar.close()
        return records

    def memory(self, prompts: Sequence[Sequence[int]], width: int) -> dict[str, float | None]:
        """MB that every method takes for one batch, at its peak, on top of models and trie."""
        return {
            name: peak_memory(partial(self._timed, method, prompts, width), self.device)
            for name, method in self.methods.items()
        }

    def _batch(
        self, prompts: Sequence[Sequence[int]], requests: Sequence[int], width: int, turn: int
    ) -> Iterator[Record]:
        decoded = self._decode(prompts, width, turn)
        rows = {name: _sequences(lists) for name, (lists, _, _) in decoded.items()}
        for row, request in enumerate(requests):
            found = {name: sequences[row] for name, sequences in rows.items()}
            for name, sequences in found.items():
                if not self.legal.issuperset(sequences):
                    raise RuntimeError(f"request {request}, K {width}: {name} recommends what is not in the catalogue")
            equal = {name: found[name] for name, method in self.methods.items() if not method.draws}
            scored = {name: decoded[name][0] for name in equal}
            tie = self.exact and (len(set(map(tuple, equal.values()))) > 1 or not self._have_equal_scores(scored, row))
            settled = not tie or self._settle(prompts[row], request, width, equal)
            for name, (lists, seconds, parts) in decoded.items():
                rounds = [] if lists.accepted is None else [a for a in lists.accepted[row].tolist() if a >= 0]
                yield Record(
                    request, name, width, [list(s) for s in found[name]], seconds / len(requests),
                    int(lists.target_calls[row]), sum(rounds) / len(rounds) if rounds else None, lists.target_tokens,
                    lists.draft_tokens, {part: value / len(requests) for part, value in parts.items()}, tie, settled,
                )  # fmt: skip

    def _decode(
        self, prompts: Sequence[Sequence[int]], width: int, turn: int
    ) -> dict[str, tuple[DecodedLists, float, dict[str, float]]]:
        """Lists, seconds and seconds by part of every method; who goes first changes from turn to turn."""
        names = list(self.methods)
        first = turn % len(names)
        decoded = {name: self._timed(self.methods[name], prompts, width) for name in names[first:] + names[:first]}
        return {name: decoded[name] for name in names}

    def _timed(
        self, method: Method, prompts: Sequence[Sequence[int]], width: int
    ) -> tuple[DecodedLists, float, dict[str, float]]:
        ids, mask = (tensor.to(self.device) for tensor in left_pad(prompts))
        clock = Clock(ids.device)
        start = now(ids.device)
        lists = method.decode(ids, mask, width, clock)
        return lists, now(ids.device) - start, clock.seconds()

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
        exact = {name: self._double[name].decode(ids, mask, width, Clock(ids.device)) for name in found}
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
