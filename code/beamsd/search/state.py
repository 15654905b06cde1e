"""The decoding state of one batch: its tree, the models' caches and the beams, advanced round by round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from beamsd.models.path_reader import PathReader
from beamsd.models.prefix import Prefix
from beamsd.models.reader import Reader, TreeReader
from beamsd.models.support import positions_of
from beamsd.search.beams import Beams, Level
from beamsd.search.drafters import make_drafter
from beamsd.search.finished import Finished
from beamsd.search.plan import SearchPlan
from beamsd.search.verification import is_open, verify
from beamsd.tree import Tree

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Rounds after which dead nodes are dropped: often enough that attending past them costs little, seldom enough
# that copying the caches costs less.
ROUNDS_KEPT = 16


class SpanTimer(Protocol):
    """Times named spans, as `Clock` does: called with a name, it returns a context manager."""

    def __call__(self, name: str) -> AbstractContextManager: ...


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


class Decoding(Protocol):
    """A batch that is decoded round by round: a `SearchState`, or one whose rounds a `Program` has captured."""

    @property
    def plan(self) -> SearchPlan:
        """The settings of the search."""

    def begin(self) -> Tensor:
        """See `SearchState`; so the others."""

    def step(self, left: int, known: Sequence[int]) -> Tensor: ...

    def round(self) -> Round: ...


class DecodingFactory(Protocol):
    """Makes a `Decoding` in the place of `SearchState`: a `Program`."""

    @property
    def lock(self) -> AbstractContextManager:
        """Held from the first round of a batch to its last."""

    def decoding(
        self, target: PreTrainedModel, draft: PreTrainedModel | None, plan: SearchPlan, input_ids: Tensor,
        attention_mask: Tensor, clock: SpanTimer | None, prefix: Prefix | None,
    ) -> Decoding: ...  # fmt: skip


def reader_of(
    model: PreTrainedModel | None, plan: SearchPlan, prompt: int, prefix: Prefix | None,
    make: Callable[..., TreeReader] | None = None,
) -> Callable[[int], TreeReader]:  # fmt: skip
    """A function that makes the reader of a model for a tree of so many nodes. prompt: tokens, padding included.
    make: the reader, if it is not one that the plan asks for."""
    make = make or (Reader if plan.tree_attention else PathReader)

    def read(capacity: int) -> TreeReader:
        length = plan.ending.length
        longest = min(prompt + length - 1, positions_of(model) or prompt + length)  # the last token is never read
        return make(model, capacity, longest, prefix=prefix.read_by(model) if prefix else None)

    return read


class SearchState:
    """The decoding state of a batch: token tree, readers of target and draft, beams."""

    def __init__(
        self, plan: SearchPlan, input_ids: Tensor, attention_mask: Tensor, read: Callable[[int], TreeReader],
        read_draft: Callable[[int], TreeReader] | None = None, *, clock: SpanTimer | None = None,
        prefix_tokens: int = 0, static: bool = False,
    ):  # fmt: skip
        """plan: from `Settings.plan` or `Settings.resolve`, for these prompts. read, read_draft: make the readers of
        target and draft for a tree of so many nodes, see `reader_of`. prefix_tokens: of a `Prefix`, which stands in
        front of all rows, before padding. static: see `Program`."""
        self.plan, self.clock = plan, clock or (lambda name: nullcontext())
        self.is_padded = static or plan.shortest < plan.longest or plan.longest < input_ids.shape[1]
        self.input_ids, self.attention_mask = input_ids, attention_mask
        capacity = input_ids.shape[1] + min(plan.ending.length, ROUNDS_KEPT) * plan.most_nodes
        if static:
            capacity = -(-capacity // 256) * 256  # so that few capacities serve all
        self.tree = Tree.empty(len(input_ids), capacity, input_ids.device)
        self.prompt_tokens = input_ids.shape[1] - prefix_tokens
        self.reader = read(capacity)

        def draft_reader() -> TreeReader:
            assert read_draft is not None, "the plan drafts with a model"
            return read_draft(capacity)

        self.static = static or input_ids.device.type != "cpu"  # elsewhere looking at a tensor would be a host sync
        self.drafter = make_drafter(plan, draft_reader, self.static)

    @property
    def nbytes(self) -> int:
        """Of tree and caches."""
        return self.tree.nbytes + sum(reader.nbytes for reader in (self.reader, *self.drafter.readers))

    def begin(self) -> Tensor:
        """Start with the prompts alone. Returns what the host reads before a round: levels left, and the counts that
        the drafter asks for (1 + m,), each the largest of the rows."""
        self.tree.reset(self.input_ids, self.attention_mask if self.is_padded else None)
        for reader in (self.reader, *self.drafter.readers):
            reader.begin(len(self.input_ids))
        ending = self.plan.ending
        self.beams = Beams.at_root(
            self.tree, self.plan.width, ending.length, invalid_score=self.plan.legal.invalid_score
        )
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
                self.plan, reading, self.tree, self.levels, self.beams, self.finished, self.static
            )
            return self._outlook()

    def round(self) -> Round:
        """What the last step did."""
        drafted = tuple(each for reader in self.drafter.readers for each in reader.forwards)
        return Round(
            self.tree, self.beams, self.finished, self.levels, self.accepted, tuple(self.reader.forwards), drafted,
            self.prompt_tokens,
        )  # fmt: skip

    def bookmark(self) -> dict[str, Any]:
        """Where the search stands, as far as the host knows: numbers, and which tensors are which."""
        places = {name: getattr(self, name, None) for name in ("beams", "finished", "levels", "accepted", "since")}
        readers = [(reader, reader.bookmark()) for reader in (self.reader, *self.drafter.readers)]
        return {"places": places, "size": self.tree.size, "readers": readers}

    def return_to(self, bookmark: dict[str, Any]) -> None:
        """Stand there again; the tensors are not touched."""
        vars(self).update(bookmark["places"])
        self.tree.size = bookmark["size"]
        for reader, place in bookmark["readers"]:
            reader.return_to(place)

    def _outlook(self) -> Tensor:
        ending = self.plan.ending
        is_done = ~is_open(self.beams, self.finished, ending)
        left = (ending.length - self.beams.depths).masked_fill(is_done, 0)
        return torch.cat([left[None], self.drafter.host_counts(self.beams, left)]).amax(1)

    def _compact(self, left: int) -> None:
        readers = [self.reader, *self.drafter.readers * self.drafter.follows]
        room = min(left, ROUNDS_KEPT) * self.plan.most_nodes
        self.tree, self.beams, dropped = compacted(self.tree, readers, self.beams, room)
        self.since -= dropped


def compacted(tree: Tree, readers: list[TreeReader], beams: Beams, room: int) -> tuple[Tree, Beams, int]:
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
