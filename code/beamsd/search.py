"""Speculative beam search: draft some levels, verify them in one target call, repeat. gamma = 0 is plain beam search.

Who drafts is the drafter's business (see `drafters`). The host looks at the device once a round: how many levels are
left, and what the drafter must know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from beamsd.beams import Beams
from beamsd.finished import Ending, Finished
from beamsd.legal import JUNK
from beamsd.prefix import Prefix
from beamsd.reader import Reader
from beamsd.settings import Plan, Settings
from beamsd.support import is_long, positions_of
from beamsd.tree import Tree
from beamsd.verify import Level, is_open, verify

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from beamsd.program import Program

# After so many rounds the dead nodes are dropped: often enough that attending past them costs little, seldom enough
# that copying the caches costs less.
ROUNDS_KEPT = 16


class Timer(Protocol):
    """Something like a `Clock`: called with a name, it gives a context to run the named span in."""

    def __call__(self, name: str) -> AbstractContextManager: ...


@dataclass(frozen=True)
class Result:
    """The K best sequences of every request, best first, and what they cost."""

    sequences: Tensor  # (B, K, T) long, token ids; 0 after the end, and throughout where there is no K-th sequence
    lengths: Tensor  # (B, K) long, tokens up to the end, EOS included; 0 where there is no K-th sequence
    scores: Tensor  # (B, K) float32, by which they are ranked; -inf where there is no K-th sequence
    log_probs: Tensor  # (B, K) float32, cumulative log-probability
    ranks: Tensor  # (B, K, T) long, which of the K beams of the step before every token continued; -1 after the end
    accepted: Tensor  # (B, R) long, drafted levels accepted in each round; -1 in rounds after the request was finished
    target_tokens: tuple[int, ...]  # read by each forward of the target, a row, the prompt included
    draft_tokens: tuple[int, ...]  # the same of the draft model
    prompt_tokens: int  # of the first forward of either, the prompt's, padding included, a `Prefix` not

    @property
    def target_calls(self) -> Tensor:
        """Target forwards (B,) that each request needed, the first over the prompt included."""
        return (self.accepted >= 0).sum(-1)

    @property
    def found(self) -> Tensor:
        """How many legal sequences (B,) each request got: K, or fewer if there are fewer."""
        return self.scores.isfinite().sum(-1)


@dataclass(frozen=True)
class Round:
    """What one round did."""

    tree: Tree
    beams: Beams
    finished: Finished | None  # None where no sequence can end before its last token
    levels: list[Level]  # what was drafted
    accepted: Tensor  # (B,) long, drafted levels accepted; -1 where the request was finished before
    target_tokens: tuple[int, ...]  # read by each forward of the target so far, a row
    draft_tokens: tuple[int, ...]  # the same of the draft model
    prompt_tokens: int  # of the first forward of either, the prompt's


class Run:
    """A batch on its way: its tree, its readers, its beams."""

    def __init__(
        self, target: PreTrainedModel, draft: PreTrainedModel | None, plan: Plan, input_ids: Tensor,
        attention_mask: Tensor, clock: Timer | None = None, prefix: Prefix | None = None,
        read: Callable[..., Reader] = Reader, static: bool = False,
    ):  # fmt: skip
        """plan: from `Settings.plan`, for these very models and prompts. prefix: in front of all rows, before padding.
        read: makes readers. static: see `Program`."""
        self.plan, self.clock = plan, clock or (lambda name: nullcontext())
        self.input_ids, self.attention_mask = input_ids, attention_mask
        prompt, length = input_ids.shape[1], plan.ending.length
        capacity = prompt + min(length, ROUNDS_KEPT) * plan.most_nodes
        if static:
            capacity = -(-capacity // 256) * 256  # so that few capacities serve all
        self.tree = Tree.empty(len(input_ids), capacity, input_ids.device)
        self.prompt_tokens = prompt - (len(prefix) if prefix else 0)

        def reader(model: PreTrainedModel) -> Reader:
            longest = min(prompt + length - 1, positions_of(model) or prompt + length)  # the last token is never read
            return read(model, capacity, longest, prefix=prefix.read_by(model) if prefix else None)

        self.reader = reader(target)
        # On CUDA, looking at the draft would be one more host sync.
        self.drafter = plan.drafter(lambda: reader(draft), static or input_ids.is_cuda)

    def begin(self) -> Tensor:
        """Plant the prompts. Returns what the host must know before a round: levels left, and what the drafter wants
        (1 + m,), the largest of the rows."""
        self.tree.plant(self.input_ids, self.attention_mask)
        for reader in (self.reader, *self.drafter.readers):
            reader.begin(len(self.input_ids))
        ending = self.plan.ending
        self.beams = Beams.at_root(self.tree, self.plan.width, ending.length, junk=self.plan.legal.junk)
        self.finished = Finished.none(self.beams) if ending.early else None
        self.since = self.tree.size - 1  # the newest nodes, where the beams stand, begin here
        return self._outlook()

    def step(self, left: int, known: Sequence[int]) -> Tensor:
        """One round; returns the same for the next. left, known: what the host has read."""
        if self.tree.size + self.plan.most_nodes > self.tree.capacity:
            self._compact(left)
        with self.clock("draft"):
            self.levels = self.drafter.draft(self.tree, self.beams, self.since, left, known)
        with self.clock("target"):
            reading = self.reader.catch_up(self.tree, self.since)
        self.since = self.tree.size
        with self.clock("verify"):
            self.beams, self.finished, self.accepted = verify(
                self.plan, reading, self.tree, self.levels, self.beams, self.finished
            )
            return self._outlook()

    def round(self) -> Round:
        """What the last step did."""
        drafted = tuple(each for reader in self.drafter.readers for each in reader.forwards)
        return Round(
            self.tree, self.beams, self.finished, self.levels, self.accepted, tuple(self.reader.forwards), drafted,
            self.prompt_tokens,
        )  # fmt: skip

    def bookmark(self) -> dict[str, object]:
        """Where the run stands, as far as the host knows: numbers, and which tensors are which."""
        places = {name: getattr(self, name, None) for name in ("beams", "finished", "levels", "accepted", "since")}
        readers = [(reader, reader.bookmark()) for reader in (self.reader, *self.drafter.readers)]
        return {"places": places, "size": self.tree.size, "readers": readers}

    def return_to(self, bookmark: dict[str, object]) -> None:
        """Stand there again; the tensors are not touched."""
        vars(self).update(bookmark["places"])
        self.tree.size = bookmark["size"]
        for reader, place in bookmark["readers"]:
            reader.return_to(place)

    def _outlook(self) -> Tensor:
        ending = self.plan.ending
        is_done = ~is_open(self.beams, self.finished, ending)
        left = (ending.length - self.beams.depths).masked_fill(is_done, 0)
        return torch.cat([left[None], self.drafter.wants(self.beams, left)]).amax(1)

    def _compact(self, left: int) -> None:
        readers = [self.reader, *self.drafter.readers * self.drafter.follows]
        room = min(left, ROUNDS_KEPT) * self.plan.most_nodes
        self.tree, self.beams, dropped = compacted(self.tree, readers, self.beams, room)
        self.since -= dropped


def rounds(
    target: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    plan: Plan,
    *,
    draft: PreTrainedModel | None = None,
    clock: Timer | None = None,
    prefix: Prefix | None = None,
    program: Program | None = None,
) -> Iterator[Round]:
    """Decode round by round. plan: from `Settings.plan`, for these very models and prompts. The tensors of a round are
    valid until the next, under a `program` until its next use."""
    if prefix and is_long(target, plan.longest):
        prefix = None
    if prefix and (arranged := prefix.in_front(input_ids, attention_mask)):
        input_ids, attention_mask = arranged
    else:
        prefix = None
    make = program.run if program else Run
    run = make(target, draft, plan, input_ids, attention_mask, clock, prefix)
    outlook = run.begin()
    while True:
        left, *known = outlook.tolist()  # the only host sync of a round
        if not left:
            return
        outlook = run.step(left, known)
        yield run.round()


def compacted(tree: Tree, readers: list[Reader], beams: Beams, room: int) -> tuple[Tree, Beams, int]:
    """The tree, with room for `room` nodes, its readers and the beams, without the nodes that no beam attends to.

    Nodes that a reader has not read yet are kept, dead or alive, so that its place in the tree stays one number.
    Returns also by how many slots the others have moved.
    """
    unread = min(reader.read for reader in readers)
    live = tree.live(beams.nodes, unread)
    dropped = unread - int(live.sum(-1).max())
    # Rows with fewer live nodes keep dead ones, in front like padding.
    slots = live.int().argsort(stable=True)[:, dropped:]
    tail = torch.arange(unread, tree.size, device=slots.device).expand(len(slots), -1)
    slots = torch.cat([slots, tail], 1)
    tree, now = tree.keep(slots, slots.shape[1] + room)
    for reader in readers:
        reader.keep(slots[:, : reader.read - dropped], tree.capacity)
    return tree, replace(beams, nodes=now.gather(1, beams.nodes)), dropped


@torch.inference_mode()
def beam_search(
    target: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    draft: PreTrainedModel | None = None,
    clock: Timer | None = None,
    prefix: Prefix | None = None,
    program: Program | None = None,
    **settings: object,
) -> Result:
    """The `width` best sequences for every prompt: under strict verification those of the target's own beam search.

    target, draft: decoder-only models with the same tokenizer, in eval mode, on the device of the prompts.
    input_ids: (B, P) long, left-padded. attention_mask: (B, P), 0 where padded; None if nothing is.
    clock: sums the seconds of draft, target and verify. prefix: what prompts begin with, to be read once for all calls;
    batches with a prompt that does not are read whole. program: a `Program`, for static shapes.
    settings: those of `Settings`, which see; `width` is required.

    Source: AtSpeed (ICLR 2025), Algorithms 1 and 2, with tree attention.
    Raises ValueError for arguments that do not fit together, before any work.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    plan = Settings(**settings).plan(target, draft, input_ids, attention_mask)
    accepted = []
    with program.lock if program else nullcontext():
        for done in rounds(
            target, input_ids, attention_mask, plan, draft=draft, clock=clock, prefix=prefix, program=program
        ):  # fmt: skip
            accepted.append(done.accepted)
        return _result(done, plan.ending, torch.stack(accepted, -1))


def _result(last: Round, ending: Ending, accepted: Tensor) -> Result:
    if last.finished is None:
        best = last.beams.scores.argsort(descending=True, stable=True)  # relaxed sampling leaves them as drawn
        beams = last.beams.take(best)
        scores, legal = beams.scores / ending.penalty(beams.depths), ~beams.illegal()
    else:
        beams = last.finished
        scores, legal = beams.scores, beams.ended & (beams.log_probs > JUNK / 2)
    ranks = beams.ranks.where(legal[..., None], -1)
    return Result(
        beams.sequences.where(ranks >= 0, 0), (ranks >= 0).sum(-1), scores.where(legal, -torch.inf),
        beams.log_probs.where(legal, -torch.inf), ranks, accepted, last.target_tokens, last.draft_tokens,
        last.prompt_tokens,
    )  # fmt: skip
