"""Captured decoding: static shapes, persistent buffers, and on CUDA one graph a round.

Prompts are padded to a multiple of `BUCKET` and levels to as many nodes, so that few shapes serve all requests. What
a round does depends on nothing but the shapes and on what the host has read before it, so the rounds of a request form
a path, and each is recorded the first time that its path is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from beamsd.models.model_state import WeightState
from beamsd.models.parts import split
from beamsd.models.prefix import Prefix
from beamsd.models.reader import KeysValues, Reader
from beamsd.search.plan import SearchPlan
from beamsd.search.state import ROUNDS_KEPT, Round, SearchState, SpanTimer, reader_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BUCKET = 32  # tokens of a prompt, nodes of a level
MOST_SHAPES = 256  # that a model is compiled for; beyond, torch would run it as it is

Replay = Callable[[], None]


@dataclass(frozen=True)
class Recording:
    """A recorded function: its result, and how to replay it on the same tensors."""

    result: Tensor
    replay: Replay


Recorder = Callable[[Callable[[], Tensor], Callable[[], None]], Recording]  # (function, undo on the host)


class CudaGraphs:
    """Records CUDA graphs that share their memory, since they only ever run in the order in which they were made."""

    def __init__(self):
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensor], undo: Callable[[], None]) -> Recording:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up at first use, which cannot be captured
            function()
        torch.cuda.current_stream().wait_stream(stream)
        undo()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            result = function()
        graph.replay()  # capturing did not run it
        return Recording(result, graph.replay)


_frozen: WeakKeyDictionary[PreTrainedModel, WeightState] = WeakKeyDictionary()  # the weights that were last compiled


def frozen(body: PreTrainedModel) -> Callable:
    """A model's body compiled for each shape that it reads, with its weights as constants, laid out for the shape."""
    import torch._dynamo.config  # here, since importing them takes seconds
    import torch._inductor.config

    if body in _frozen and not _frozen[body].holds(body):
        torch.compiler.reset()  # it goes by the code of the model's class, and would take up what has the old weights
    _frozen[body] = WeightState(body)
    compiled = torch.compile(body, dynamic=False)

    def call(**inputs: object) -> object:
        # Not by torch.compile(options=...), under which weights are not frozen (torch 2.13).
        with torch._inductor.config.patch(freezing=True), torch._dynamo.config.patch(recompile_limit=MOST_SHAPES):
            return compiled(**inputs)

    return call


class Program:
    """Keeps what is captured from call to call: `beam_search(…, program=program)`, `speculate(…, capture=True)`.

    Every shape of a batch keeps its tree and caches, until the weights or adapters of a model change: then what was
    captured of it is dropped (see `WeightState` for what is seen of changes). Threads that share a program take turns.
    On CUDA every round becomes a graph. On the CPU nothing is recorded; the models are compiled (torch.compile with
    frozen weights) for each number of tokens that they read at a time, which takes half a minute each for a model of
    160 M weights.
    """

    def __init__(
        self, *, recorder: Callable[[], Recorder] | None = None, compiler: Callable[[Callable], Callable] | None = None
    ):  # fmt: skip
        """recorder: makes one a batch shape; None is CUDA graphs on a GPU. compiler: of the models, on the CPU; None is
        `frozen`."""
        self._recorder, self._compiler = recorder, compiler or frozen
        self._values: WeakKeyDictionary[PreTrainedModel, WeightState] = WeakKeyDictionary()
        self._bodies: WeakKeyDictionary[PreTrainedModel, Callable] = WeakKeyDictionary()
        self._runs: dict[tuple, RecordedSearch] = {}
        self.lock: AbstractContextManager = RLock()  # a search has one set of buffers

    def decoding(
        self, target: PreTrainedModel, draft: PreTrainedModel | None, plan: SearchPlan, input_ids: Tensor,
        attention_mask: Tensor, clock: SpanTimer | None, prefix: Prefix | None,
    ) -> RecordedSearch:  # fmt: skip
        """A batch, in the buffers of an earlier one of the same shape."""
        if plan.in_step or plan.ending.length > ROUNDS_KEPT:
            raise ValueError(
                "capture takes no logits processors, no stopping criteria, and answers of at most "
                f"{ROUNDS_KEPT} tokens: leave it off"
            )
        for model in filter(None, (target, draft)):
            self._drop_stale(model)
        first = len(prefix) if prefix else 0
        padding = -(input_ids.shape[1] - first) % BUCKET
        input_ids, attention_mask = (
            torch.cat([each[:, :first], each.new_zeros(len(each), padding), each[:, first:]], 1)
            for each in (input_ids, attention_mask)
        )  # fmt: skip
        key = (id(target), id(draft), tuple(input_ids.shape), input_ids.device, id(prefix), plan.key)
        if key not in self._runs:
            recorder = self._recorder or (CudaGraphs if input_ids.is_cuda else None)
            read, read_draft = (
                reader_of(model, plan, input_ids.shape[1], prefix, self._reader) for model in (target, draft)
            )  # fmt: skip
            run = SearchState(
                plan, input_ids.clone(), attention_mask.clone(), read, read_draft, prefix_tokens=first, static=True
            )
            self._runs[key] = RecordedSearch(run, recorder and recorder(), (target, draft, prefix))
        recorded = self._runs[key]
        recorded.load(input_ids, attention_mask, plan.seeds, clock)
        return recorded

    def _drop_stale(self, model: PreTrainedModel) -> None:
        if model in self._values and self._values[model].holds(model):
            return
        self._values[model] = WeightState(model)
        self._runs = {key: run for key, run in self._runs.items() if id(model) not in key[:2]}
        self._bodies.pop(model, None)

    def _reader(self, model: PreTrainedModel, capacity: int, longest: int, *, prefix: KeysValues | None) -> Reader:
        return Reader(model, capacity, longest, prefix=prefix, body=self._body(model))

    def compiles(self, model: PreTrainedModel) -> bool:
        """Whether it compiles the model, which takes long the first time that it reads so many tokens."""
        return model.device.type == "cpu" and self._recorder is None and split(model) is not None

    def _body(self, model: PreTrainedModel) -> Callable | None:
        divided = split(model)
        if not self.compiles(model) or divided is None:
            return None
        if model not in self._bodies:
            self._bodies[model] = self._compiler(divided.body)
        return self._bodies[model]


class RecordedSearch:
    """A `SearchState` with persistent buffers, whose rounds are recorded."""

    def __init__(self, run: SearchState, recorder: Recorder | None, kept: Sequence[object]):
        """kept: what must live as long as this, since graphs read it and the run is known by its id."""
        self._run, self._recorder, self._kept = run, recorder, kept
        self._recordings: dict[tuple, tuple[Recording, dict]] = {}
        self._path: tuple = ()

    @property
    def plan(self) -> SearchPlan:
        return self._run.plan

    def load(self, input_ids: Tensor, attention_mask: Tensor, seeds: Tensor | None, clock: SpanTimer | None) -> None:
        """Put another batch of the same shape in place."""
        run = self._run
        run.input_ids.copy_(input_ids)
        run.attention_mask.copy_(attention_mask)
        if seeds is not None and run.plan.seeds is not None and seeds is not run.plan.seeds:
            run.plan.seeds.copy_(seeds)
        self._clock = clock or (lambda name: nullcontext())
        if self._recorder is None:
            run.clock = self._clock

    def begin(self) -> Tensor:
        self._path = ()
        return self._play(self._run.begin)

    def step(self, left: int, known: Sequence[int]) -> Tensor:
        known = [-(-count // BUCKET) * BUCKET for count in known]
        self._path += ((left, *known),)
        if self._recorder is None:
            return self._run.step(left, known)
        with self._clock("round"):
            return self._play(lambda: self._run.step(left, known))

    def round(self) -> Round:
        return self._run.round()

    def _play(self, function: Callable[[], Tensor]) -> Tensor:
        if self._recorder is None:
            return function()
        if self._path not in self._recordings:
            before = self._run.bookmark()
            recording = self._recorder(function, lambda: self._run.return_to(before))
            self._recordings[self._path] = recording, self._run.bookmark()
        else:
            recording, after = self._recordings[self._path]
            recording.replay()
            self._run.return_to(after)
        return self._recordings[self._path][0].result
