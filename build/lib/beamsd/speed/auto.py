"""Chooses the drafter with the least expected time, from measured costs of forwards and past acceptance.

A request's time is taken for the sum of its forwards, and a forward's for a function of the tokens it reads, measured
once a model. What the forwards of each drafter read, and so how often it was right, is remembered from the requests
that it drafted; so is how far the sum was off from the clock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from threading import RLock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from beamsd.models.prefix import Prefix
from beamsd.search.beam_search import Result, beam_search
from beamsd.search.state import SpanTimer
from beamsd.speed.costs import SIZES, Curve, Forwards
from beamsd.speed.program import Program
from beamsd.trie import Trie, check_trie

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRIES = 3  # timed requests before a drafter is judged
MOST_TRIES = 9  # requests after which it must be judged by what was timed, or is given up
MEMORY = 32  # requests remembered of each drafter
AGAIN = 50  # one request in so many goes to a drafter that may have been misjudged, ...
CLOSE = 1.3  # ... if its time is within this factor of the best, or if it is plain beam search
KEPT = 16  # requests for which a decision holds, since deciding takes time too
MARGIN = 0.97  # of the time of plain beam search: what drafting must promise to be chosen


@dataclass(frozen=True)
class Choice:
    """The settings that say who drafts."""

    drafter: str
    gamma: int = 0
    draft_width: tuple[int, ...] | None = None
    nodes: int | None = None

    def __str__(self) -> str:
        """For `report`."""
        widths = "" if self.draft_width is None else f", N {' '.join(map(str, self.draft_width))}"
        return self.drafter + (f", gamma {self.gamma}" if self.gamma else "") + widths


PLAIN = Choice("none")


@dataclass
class ChoiceHistory:
    """What was measured of one choice."""

    tries: int = 0
    forwards: deque[Forwards] = field(default_factory=lambda: deque(maxlen=MEMORY))
    # Seconds by the clock / by the curves.
    time_ratios: deque[float] = field(default_factory=lambda: deque(maxlen=MEMORY))

    def learn(self, ratio: float) -> None:
        """Remember; what was much slower before, when the machine was busy with other things, is forgotten."""
        if self.time_ratios and ratio < median(self.time_ratios) / 1.5:
            self.time_ratios.clear()
        self.time_ratios.append(ratio)

    @property
    def needs_trial(self) -> bool:
        """Whether it should be tried again before it is judged."""
        return len(self.time_ratios) < TRIES and self.tries < MOST_TRIES


@dataclass(frozen=True)
class Requests:
    """A kind of batch: B requests of K beams and at most T tokens, which the same drafters may draft."""

    batch: int
    width: int
    length: int
    choices: tuple[Choice, ...]


class Auto:
    """Decodes each batch with the drafter that is expected to be fastest, plain beam search included.

    It starts by giving every drafter a few requests, unless even its best case is slower than another's average.
    The lists never depend on it, nor the draws of verification="coupled" and "sample"; "relaxed" always takes the draft
    model.
    """

    def __init__(self, draft_width: int | Sequence[int] | None = None, gamma: int = 3, nodes: int | None = None):
        """draft_width, gamma: of the draft model's own beam search, one of the choices. nodes: as in `Settings`."""
        self.given = Choice("model", gamma, draft_width if draft_width is None else _tuple(draft_width), nodes)
        self._curves: WeakKeyDictionary[PreTrainedModel, Curve] = WeakKeyDictionary()
        self._histories: dict[Requests, dict[Choice, ChoiceHistory]] = {}
        self._seen: set[tuple[Requests, Choice]] = set()
        self._decided: dict[tuple[Requests, int], tuple[Choice, int]] = {}  # and for how many more requests
        self._lock = RLock()  # threads learn together; they search at the same time

    def beam_search(
        self, target: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None = None, *,
        draft: PreTrainedModel | None = None, clock: SpanTimer | None = None, prefix: Prefix | None = None,
        program: Program | None = None, **settings: Any,
    ) -> Result:  # fmt: skip
        """As `beamsd.beam_search`, whose settings it takes, but for those that say who drafts."""
        check_trie(settings.get("trie"))
        B, P = input_ids.shape
        length = settings.get("max_new_tokens") or settings["trie"].length
        choices = self._choices(settings["width"], length, draft, settings)
        requests = Requests(B, settings["width"], length, choices)
        with self._lock:
            choice, is_trial = self._decide(requests, max(P - len(prefix or ()), 1), target, draft, settings)
        # Where models are compiled for each shape, half a minute each, only what is chosen is worth it: all are judged
        # by what they take uncompiled.
        compiles = program is not None and program.compiles(target)
        if is_trial and compiles:
            program = None
        recorded = program.recorded if program else 0
        start = time.perf_counter()
        result = beam_search(
            target, input_ids, attention_mask, draft=draft, clock=clock, prefix=prefix, program=program, **settings,
            **vars(choice),
        )  # fmt: skip
        seconds = time.perf_counter() - start
        only_decoded = not program or not (program.compiles(target) or program.recorded > recorded)
        with self._lock:
            self._learn(requests, choice, result, seconds if only_decoded else None, target, draft)
        return result

    def _learn(
        self, requests: Requests, choice: Choice, result: Result, seconds: float | None,
        target: PreTrainedModel, draft: PreTrainedModel | None,
    ) -> None:  # fmt: skip
        """seconds: None where a part of them went into compiling or capturing."""
        if len(self._histories[requests]) == 1:
            return
        history = self._histories[requests][choice]
        prompt = result.prompt_tokens
        forwards = Forwards(_without(result.target_tokens, prompt), _without(result.draft_tokens, prompt))
        history.forwards.append(forwards)
        history.tries += 1
        if seconds is None:
            return
        # What runs for the first time is not timed: memory is fetched, kernels load.
        if (requests, choice) in self._seen:
            history.learn(seconds / self._seconds(forwards, requests.batch, prompt, target, draft))
        self._seen.add((requests, choice))

    def _decide(
        self, requests: Requests, prompt: int, target: PreTrainedModel, draft: PreTrainedModel | None, settings: dict
    ) -> tuple[Choice, bool]:
        """A choice, and whether it is made to learn."""
        if requests not in self._histories:
            self._histories[requests] = {choice: ChoiceHistory() for choice in requests.choices}
        histories = self._histories[requests]
        if len(histories) == 1:
            return next(iter(histories)), False
        alike = (requests, prompt // 32)
        choice, left = self._decided.pop(alike, (PLAIN, 0))
        if left:
            self._decided[alike] = choice, left - 1
            return choice, False
        for model in filter(None, (target, draft)):
            if model not in self._curves:
                self._curves[model] = Curve.measure(model)

        def seconds(forwards: Forwards) -> float:
            return self._seconds(forwards, requests.batch, prompt, target, draft)

        best_cases = {
            choice: seconds(_best_case(choice, requests, settings.get("trie")))
            for choice, history in histories.items() if history.needs_trial
        }  # fmt: skip
        promise = {
            choice: _promise(history, seconds)
            for choice, history in histories.items() if history.time_ratios and not history.needs_trial
        }  # fmt: skip
        choice, is_trial = _choose(histories, best_cases, promise)
        if not is_trial:
            self._decided[alike] = choice, KEPT - 1
        return choice, is_trial

    def _choices(self, K: int, length: int, draft: PreTrainedModel | None, settings: dict) -> tuple[Choice, ...]:
        given = self.given
        model = [given] if draft is not None and given.gamma else []
        if settings.get("verification") == "relaxed":
            return tuple(model or [PLAIN])
        if model and given.gamma > 1:  # every second level then comes for free, and few nodes are wasted
            model.append(replace(given, gamma=1))
        if settings.get("trie") is None or settings.get("logits_processor"):
            return (PLAIN, *model)
        choices = [PLAIN, Choice("trie", nodes=given.nodes), *model]
        if draft is not None and length > 2:
            widest = max(given.draft_width or (2 * K,))
            for width in sorted({widest, 5 * K}):
                choices.append(Choice("hybrid", draft_width=(width,), nodes=given.nodes))
            choices.append(Choice("hybrid", draft_width=(2 * K, widest), nodes=given.nodes))
        return tuple(choices)

    def _seconds(
        self, forwards: Forwards, batch: int, prompt: int, target: PreTrainedModel, draft: PreTrainedModel | None
    ) -> float:
        """What the curves say of a batch's forwards. The first of either model reads the prompt too."""
        seconds = 0.0
        for model, tokens in ((target, forwards.target), (draft, forwards.draft)):
            for i, each in enumerate(tokens):
                seconds += self._curves[model](batch * (each + prompt * (i == 0)))
        return seconds

    def report(self) -> str:
        """What was chosen for which requests, and why: a Markdown table for each kind of request."""
        with self._lock:
            return "\n".join(self._lines()).strip() or "no request yet"

    def _lines(self) -> list[str]:
        lines = []
        for requests, histories in self._histories.items():
            lines += [
                f"\nbatch {requests.batch}, K {requests.width}, {requests.length} tokens\n",
                "| drafter | requests | target calls | target tokens | draft tokens | clock / curves |",
                "|---|---|---|---|---|---|",
            ]
            if len(histories) == 1:
                lines.append(f"| {next(iter(histories))} | the only choice | | | | |")
                continue
            for choice, history in sorted(histories.items(), key=lambda item: -item[1].tries):
                seen = history.forwards
                numbers = (
                    f"{fmean(len(f.target) for f in seen):.2f} | {fmean(sum(f.target) for f in seen):.0f} | "
                    f"{fmean(sum(f.draft) for f in seen):.0f} | {median(history.time_ratios):.2f}"
                    if history.time_ratios else "not timed yet | | |" if history.tries
                    else "not tried: its best case is slower than another's average | | |"
                )  # fmt: skip
                lines.append(f"| {choice} | {history.tries} | {numbers} |")
        for model, curve in self._curves.items():
            costs = ", ".join(f"{size}: {1e3 * s:.1f}" for size, s in zip(SIZES, curve.seconds, strict=True))
            lines.append(f"\n{type(model).__name__} of {model.num_parameters():,} weights, ms by tokens: {costs}")
        return lines


def _choose(
    histories: dict[Choice, ChoiceHistory], best_cases: dict[Choice, float], promise: dict[Choice, float]
) -> tuple[Choice, bool]:
    """A choice, and whether it is made to learn. best_cases: seconds of those that are not judged yet; promise: of the
    others."""
    if PLAIN not in promise:  # all others are judged against it
        return PLAIN, True
    ratio = median(histories[PLAIN].time_ratios)
    hopeful = [choice for choice, seconds in best_cases.items() if seconds * ratio < min(promise.values())]
    if hopeful:
        return min(hopeful, key=best_cases.__getitem__), True
    best = min(promise, key=promise.__getitem__)
    if promise[best] > MARGIN * promise[PLAIN]:
        best = PLAIN
    close = [
        choice for choice, seconds in promise.items()
        if choice != best and (choice == PLAIN or seconds < CLOSE * promise[best])
    ]  # fmt: skip
    if close:
        rare = min(close, key=lambda choice: histories[choice].tries)
        tries = sum(each.tries for each in histories.values())
        if AGAIN * (histories[rare].tries - TRIES + 1) * len(close) < tries:
            return rare, True
    return best, False


def _promise(history: ChoiceHistory, seconds: Callable[[Forwards], float]) -> float:
    """The seconds that a choice may be expected to take."""
    return median(history.time_ratios) * fmean(seconds(forwards) for forwards in history.forwards)


def _best_case(choice: Choice, requests: Requests, trie: Trie | None) -> Forwards:
    """What the forwards read where all that is drafted is accepted, or a bound below it."""
    K, T = requests.width, requests.length
    widths = choice.draft_width or (2 * K,)
    if choice.drafter == "none":
        return Forwards((0,) + (K,) * (T - 1))
    if choice.drafter == "model":
        levels = [widths[min(i, len(widths) - 1)] for i in range(min(choice.gamma, T - 1))]
        calls = -(-T // (choice.gamma + 1))
        return Forwards((sum(levels),) + (K,) * (calls - 1), (0, *levels[:-1]))
    assert trie is not None
    first = int(trie.below(torch.zeros((), dtype=torch.long, device=trie.tokens.device), 1))
    if choice.drafter == "trie":
        # All first tokens settle two levels; below two levels, a trie may be a line.
        return Forwards((min(first, choice.nodes or first), *[2 * K] * (T > 2)))
    above = first if len(widths) == 1 else min(first, widths[0])
    return Forwards((above + widths[-1] * (1 + (T > 3)),), (first,))


def _without(tokens: Sequence[int], prompt: int) -> tuple[int, ...]:
    return (tokens[0] - prompt, *tokens[1:]) if tokens else ()


def _tuple(widths: int | Sequence[int]) -> tuple[int, ...]:
    return (widths,) if isinstance(widths, int) else tuple(widths)
