"""Captured decoding: static shapes, persistent buffers, and on CUDA one graph a round.

Prompts and levels are padded to a coarse grid of sizes, so that few shapes serve all requests. What a round does
depends on nothing but the shapes and on what the host has read before it, so the rounds of a request form a path, and
each is recorded the first time that its path is taken.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from beamsd.models.model_state import WeightState
from beamsd.models.parts import split
from beamsd.models.prefix import Prefix
from beamsd.models.reader import KeysValues, Reader
from beamsd.models.support import changes_rotation
from beamsd.search.plan import SearchPlan
from beamsd.search.state import ROUNDS_KEPT, Decoding, Round, SearchState, SpanTimer, reader_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

SMALLEST = 32  # tokens of a prompt, nodes of a level: the first size of the grid
PROMPT_STEPS, LEVEL_STEPS = 8, 2  # sizes of the grid between powers of two
MOST_RECORDINGS = 64  # of one shape of batch; paths beyond these are rare, and run without
MOST_SHAPES = 256  # that a model is compiled for; beyond, torch would run it as it is

Replay = Callable[[], None]


@dataclass(frozen=True)
class Recording:
    """A recorded function: its result, and how to replay it on the same tensors."""

    result: Tensor
    replay: Replay


class Recorder(Protocol):
    @property
    def nbytes(self) -> int:
        """Of device memory that its recordings hold."""

    def __call__(self, function: Callable[[], Tensor], undo: Callable[[], None]) -> Recording:
        """Run the function and record it. undo: takes back what a run of it changed on the host.

        Raises CaptureError, with the function undone, if it cannot be recorded.
        """


class CaptureError(RuntimeError):
    """A function that cannot be recorded."""


class CudaGraphs:
    """Records CUDA graphs that share their memory, since they only ever run in the order in which they were made."""

    def __init__(self, device: torch.device):
        # By themselves torch's streams and graphs are those of the current device, which need not be the model's.
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    @property
    def nbytes(self) -> int:
        segments = torch.cuda.memory_snapshot()
        return sum(segment["total_size"] for segment in segments if segment["segment_pool_id"] == self.pool)

    def __call__(self, function: Callable[[], Tensor], undo: Callable[[], None]) -> Recording:
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                function()  # libraries set themselves up at first use, which cannot be captured
                undo()
                try:
                    with NoHostSyncs():  # a capture that was broken off would leave torch's allocator in disorder
                        function()
                finally:
                    undo()
            current.wait_stream(self.stream)
            graph = torch.cuda.CUDAGraph()
            try:
                with warnings.catch_warnings(), torch.cuda.stream(current):
                    warnings.filterwarnings("error", message=".*CUDA Graph is empty")
                    with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                        result = function()
            except torch.OutOfMemoryError:
                undo()
                raise
            except (RuntimeError, UserWarning) as error:
                undo()
                raise CaptureError(str(error).partition("\n")[0]) from error
            graph.replay()  # capturing did not run it
        return Recording(result, graph.replay)


class NoHostSyncs(TorchDispatchMode):
    """Raises CaptureError at an operation for which the host would wait for the device."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal")

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in self.WAITS or by_mask:
            raise CaptureError(f"{function} waits for the device")
        return function(*args, **(kwargs or {}))


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
    captured of it is dropped (see `WeightState` for what is seen of changes). So is what was used least recently, once
    all together hold more than `max_bytes`. Threads that share a program take turns.
    On CUDA every round becomes a graph. A model that cannot be captured, as with experts that the host chooses, runs
    without, and a warning in the log says so, once. On the CPU nothing is recorded; the models are compiled
    (torch.compile with frozen weights) for each number of tokens that they read at a time, which takes half a minute
    each for a model of 160 M weights.
    """

    def __init__(
        self, max_bytes: int | None = None, *, recorder: Callable[[], Recorder] | None = None,
        compiler: Callable[[Callable], Callable] | None = None,
    ):  # fmt: skip
        """max_bytes: that trees, caches and graphs may hold together; None is a quarter of the device's memory. A batch
        that alone holds more runs without capture.
        recorder: makes one a batch shape; None is CUDA graphs on a GPU. compiler: of the models, on the CPU; None is
        `frozen`."""
        self.max_bytes, self.recorded = max_bytes, 0  # how many rounds have been recorded so far
        self._recorder, self._compiler = recorder, compiler or frozen
        self._values: WeakKeyDictionary[PreTrainedModel, WeightState] = WeakKeyDictionary()
        self._bodies: WeakKeyDictionary[PreTrainedModel, Callable] = WeakKeyDictionary()
        self._uncaptured: WeakSet[PreTrainedModel] = WeakSet()  # models that cannot be
        self._too_large: set[tuple] = set()  # keys of batches that alone exceed the budget
        self._runs: OrderedDict[tuple, RecordedSearch] = OrderedDict()  # the one used last is at the end
        self.lock: AbstractContextManager = RLock()  # a search has one set of buffers

    def decoding(
        self, target: PreTrainedModel, draft: PreTrainedModel | None, plan: SearchPlan, input_ids: Tensor,
        attention_mask: Tensor, clock: SpanTimer | None, prefix: Prefix | None,
    ) -> Decoding:  # fmt: skip
        """A batch, in the buffers of an earlier one of the same shape."""
        if plan.in_step or plan.ending.length > ROUNDS_KEPT:
            raise ValueError(
                "capture takes no logits processors, no stopping criteria, and answers of at most "
                f"{ROUNDS_KEPT} tokens: leave it off"
            )
        self._make_room()
        models = [model for model in (target, draft if plan.widths else None) if model is not None]
        for model in models:
            self._drop_stale(model)
            if changes_rotation(model) and model not in self._uncaptured:
                self._give_up(model, "its rotary frequencies follow from the length, which the host computes")
        first = len(prefix) if prefix else 0
        prompt = input_ids.shape[1] - first
        padding = on_grid(prompt, PROMPT_STEPS) - prompt
        shape = (len(input_ids), first, prompt + padding)
        key = (tuple(map(id, models)), shape, input_ids.device, id(prefix), plan.key)
        if self._uncaptured.intersection(models) or key in self._too_large:
            read, read_draft = (reader_of(model, plan, input_ids.shape[1], prefix) for model in (target, draft))
            return SearchState(plan, input_ids, attention_mask, read, read_draft, clock=clock, prefix_tokens=first)
        input_ids, attention_mask = (
            torch.cat([each[:, :first], each.new_zeros(len(each), padding), each[:, first:]], 1)
            for each in (input_ids, attention_mask)
        )  # fmt: skip
        if key not in self._runs:
            read, read_draft = (
                reader_of(model, plan, input_ids.shape[1], prefix, self._reader) for model in (target, draft)
            )  # fmt: skip
            state = SearchState(
                plan, input_ids.clone(), attention_mask.clone(), read, read_draft, prefix_tokens=first, static=True
            )
            self._runs[key] = RecordedSearch(state, self._recorder_on(input_ids.device), (*models, prefix), self)
        self._runs.move_to_end(key)
        recorded = self._runs[key]
        recorded.load(input_ids, attention_mask, plan.seeds, clock)
        return recorded

    def _recorder_on(self, device: torch.device) -> Recorder | None:
        if self._recorder:
            return self._recorder()
        return CudaGraphs(device) if device.type == "cuda" else None

    @property
    def nbytes(self) -> int:
        """Of trees, caches and graphs."""
        return sum(run.nbytes for run in self._runs.values())

    def _make_room(self) -> None:
        """Drop what was used least recently until the rest is within the budget."""
        for key, run in list(self._runs.items()):
            budget = self.max_bytes or _memory_of(run.device) // 4
            if self.nbytes <= budget:
                return
            del self._runs[key]
            if run.nbytes > budget:
                self._too_large.add(key)
                logger.warning(
                    "a batch of shape %s holds %.1f GB when captured, more than max_bytes: such batches run without",
                    key[1], run.nbytes / 1e9,
                )  # fmt: skip

    def fall_back(self, run: RecordedSearch, error: Exception) -> None:
        """A run whose next round cannot be recorded: of models that never can be, or for want of memory."""
        if isinstance(error, CaptureError):
            for model in run.kept[:-1]:
                self._give_up(model, str(error))
        else:
            self._runs = OrderedDict((key, other) for key, other in self._runs.items() if other is run)
            logger.warning("no memory to capture a batch: others are dropped, and this one runs without")

    def _give_up(self, model: PreTrainedModel, reason: str) -> None:
        self._uncaptured.add(model)
        logger.warning("%s cannot be captured, and runs without: %s", type(model).__name__, reason)

    def _drop_stale(self, model: PreTrainedModel) -> None:
        if model in self._values and self._values[model].holds(model):
            return
        self._values[model] = WeightState(model)
        self._runs = OrderedDict((key, run) for key, run in self._runs.items() if id(model) not in key[0])
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

    def __init__(self, state: SearchState, recorder: Recorder | None, kept: Sequence[Any], program: Program):
        """kept: what must live as long as this, since graphs read it and the run is known by its id: models, and the
        prefix."""
        self._state, self._recorder, self._program, self.kept = state, recorder, program, kept
        self._recordings: dict[tuple, tuple[Recording, dict]] = {}
        self._path: tuple = ()
        self._nbytes: int | None = None

    @property
    def plan(self) -> SearchPlan:
        return self._state.plan

    @property
    def device(self) -> torch.device:
        return self._state.input_ids.device

    @property
    def nbytes(self) -> int:
        """Of tree, caches and graphs."""
        if self._nbytes is None:
            self._nbytes = self._state.nbytes + (self._recorder.nbytes if self._recorder else 0)
        return self._nbytes

    def load(self, input_ids: Tensor, attention_mask: Tensor, seeds: Tensor | None, clock: SpanTimer | None) -> None:
        """Put another batch of the same shape in place."""
        state = self._state
        state.input_ids.copy_(input_ids)
        state.attention_mask.copy_(attention_mask)
        if seeds is not None and state.plan.seeds is not None and seeds is not state.plan.seeds:
            state.plan.seeds.copy_(seeds)
        self._clock = clock or (lambda name: nullcontext())
        if self._recorder is None:
            state.clock = self._clock

    def begin(self) -> Tensor:
        self._path, self._records = (), self._recorder is not None
        return self._play(self._state.begin)

    def step(self, left: int, known: Sequence[int]) -> Tensor:
        left, known = self._state.drafter.relevant(left, [on_grid(count, LEVEL_STEPS) for count in known])
        self._path += ((left, *known),)
        if self._recorder is None:
            return self._state.step(left, known)
        with self._clock("round"):
            return self._play(lambda: self._state.step(left, known))

    def round(self) -> Round:
        return self._state.round()

    def _play(self, function: Callable[[], Tensor]) -> Tensor:
        if self._path in self._recordings:
            recording, after = self._recordings[self._path]
            recording.replay()
            self._state.return_to(after)
            return recording.result
        # What follows a round that is not recorded reads other tensors each time.
        self._records = self._records and len(self._recordings) < MOST_RECORDINGS
        return self._record(function) if self._records else function()

    def _record(self, function: Callable[[], Tensor]) -> Tensor:
        assert self._recorder is not None
        before = self._state.bookmark()
        self._nbytes = None
        try:
            recording = self._recorder(function, lambda: self._state.return_to(before))
        except (CaptureError, torch.OutOfMemoryError) as error:
            self._program.fall_back(self, error)
            self._records = False
            return function()
        self._recordings[self._path] = recording, self._state.bookmark()
        self._program.recorded += 1
        return recording.result


def on_grid(count: int, steps: int) -> int:
    """The smallest size of the grid that holds `count`: with so many steps between powers of two, from `SMALLEST`."""
    power = 1 << max(count - 1, 0).bit_length() >> 1
    step = max(SMALLEST, power // steps)
    return -(-count // step) * step


def _memory_of(device: torch.device) -> int:
    """Bytes of memory that a device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
