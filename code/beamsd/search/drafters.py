"""Drafters: a draft model, the trie, or both. Each proposes levels of nodes for the target to verify.

The last level is never drafted, since the target chooses it in any case.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from beamsd.models.reader import TreeOutput, TreeReader
from beamsd.search.beams import Beams, Level, Scoring
from beamsd.search.constraints import Constraint, TrieConstraint
from beamsd.search.plan import TRIE_DRAFTERS, SearchPlan
from beamsd.tree import Tree


class Drafter(Protocol):
    @property
    def readers(self) -> tuple[TreeReader, ...]:
        """Those of draft models."""

    @property
    def follows(self) -> bool:
        """Whether the readers read on in later rounds."""

    def host_counts(self, beams: Beams, left: Tensor) -> Tensor:
        """Counts (m, B) long that `draft` needs on the host, as maxima over the rows.

        left: (B,) long, levels left in each row.
        """

    def relevant(self, left: int, known: Sequence[int]) -> tuple[int, Sequence[int]]:
        """`left` and `known` without what has no influence on `draft`, so that equal ones draft equal shapes."""

    def draft(self, tree: Tree, beams: Beams, since: int, left: int, known: Sequence[int]) -> list[Level]:
        """Append levels below `beams`, whose nodes are the tree's from slot `since` on.

        left: most levels left in a row. known: the maxima of `host_counts`.
        """


class NoDrafter:
    """Nothing is drafted: gamma 0, plain beam search."""

    readers: tuple[TreeReader, ...] = ()
    follows = False

    def host_counts(self, beams: Beams, left: Tensor) -> Tensor:
        return left.new_zeros(0, len(left))

    def relevant(self, left: int, known: Sequence[int]) -> tuple[int, Sequence[int]]:
        return 1, ()

    def draft(self, tree: Tree, beams: Beams, since: int, left: int, known: Sequence[int]) -> list[Level]:
        return []


@dataclass(frozen=True)
class ModelDrafter(NoDrafter):
    """The draft model's own beam search, a forward a level (AtSpeed, Algorithm 1)."""

    legal: Constraint
    scoring: Scoring
    widths: tuple[int, ...]  # N of each level, so gamma numbers
    readers: tuple[TreeReader, ...]  # one
    follows = True

    def relevant(self, left: int, known: Sequence[int]) -> tuple[int, Sequence[int]]:
        return min(left, len(self.widths) + 1), ()

    def draft(self, tree: Tree, beams: Beams, since: int, left: int, known: Sequence[int]) -> list[Level]:
        levels = []
        for width in self.widths[: left - 1]:
            reading = self.readers[0].catch_up(tree, since)
            since = tree.size
            grown = beams.step(self.legal.options(reading, beams, width), self.scoring, width)
            levels.append(_append_level(tree, grown, grown.nodes, beams, reading))
            beams = levels[-1].beams
        return levels


@dataclass(frozen=True)
class TrieDrafter(NoDrafter):
    """Drafts all legal continuations, as deep as they fit into `nodes`; if even the first level does not, those of the
    best beams. Runs no model."""

    legal: TrieConstraint
    nodes: int

    def host_counts(self, beams: Beams, left: Tensor) -> Tensor:
        """The number of continuations (T - 1, B) one, two, … levels below the beams; 0 beyond what is left."""
        levels = beams.sequences.shape[-1] - 1
        below = self.legal.trie.below(beams.states, levels).masked_fill(beams.illegal(), 0).sum(-1)
        return below.masked_fill(torch.arange(1, levels + 1, device=left.device)[:, None] >= left, 0)

    def relevant(self, left: int, known: Sequence[int]) -> tuple[int, Sequence[int]]:
        """The widths of the levels that are drafted."""
        widths, room = [], self.nodes
        for depth, count in enumerate(known):
            width = min(count, room) if depth == 0 else count
            if not 0 < width <= room:
                break
            widths.append(width)
            room -= width
        return 1, widths

    def draft(self, tree: Tree, beams: Beams, since: int, left: int, known: Sequence[int]) -> list[Level]:
        levels = []
        for width in self.relevant(left, known)[1]:
            levels.append(self.level(tree, beams, width))
            beams = levels[-1].beams
        return levels

    def level(self, tree: Tree, beams: Beams, width: int) -> Level:
        """All legal children, best first by the parent's score, up to `width`."""
        options = self.legal.children(beams, width)
        scores, best = (beams.scores[..., None] + options.log_probs).flatten(1).topk(width)
        log_probs = (beams.log_probs[..., None] + options.log_probs).flatten(1).gather(1, best)
        grown = beams.grown(options, best, scores, log_probs)
        return _append_level(tree, grown, grown.nodes, beams, None)


@dataclass(frozen=True)
class HybridDrafter(NoDrafter):
    """In the first round the draft model ranks the second level, in one forward over the prompt and all first tokens;
    the trie supplies what lies below, and all that is drafted in later rounds."""

    legal: TrieConstraint
    scoring: Scoring
    widths: tuple[int | None, int]  # of the first level, None for all there is, and of the second
    below: TrieDrafter
    static: bool  # no shape may depend on the draft: below the second level there are all the nodes there is room for
    readers: tuple[TreeReader, ...]  # one

    def host_counts(self, beams: Beams, left: Tensor) -> Tensor:
        return self.below.host_counts(beams, left)

    def relevant(self, left: int, known: Sequence[int]) -> tuple[int, Sequence[int]]:
        if self.readers[0].forwards or left < 3:
            return self.below.relevant(left, known)
        return left, known[:1]

    def draft(self, tree: Tree, beams: Beams, since: int, left: int, known: Sequence[int]) -> list[Level]:
        if self.readers[0].forwards or left < 3:
            return self.below.draft(tree, beams, since, left, known)
        levels = self._ranked(tree, beams, since, known[0])
        room = self.below.nodes - sum(level.parents.shape[1] for level in levels)
        ranked = levels[-1].beams
        counts = self.legal.trie.below(ranked.states, left - 3).masked_fill(ranked.illegal(), 0).sum(-1)
        known = [room] * (left > 3) if self.static else counts.amax(1).tolist()
        return levels + replace(self.below, nodes=room).draft(tree, ranked, since, left - 2, known)

    def _ranked(self, tree: Tree, beams: Beams, since: int, n_first: int) -> list[Level]:
        """The first two levels, best first. n_first: first tokens that are legal."""
        every = self.below.level(tree, beams, n_first).beams
        reading = self.readers[0].catch_up(tree, since)
        first_width, width = min(self.widths[0] or n_first, n_first), self.widths[1]
        first = beams.step(self.legal.options(reading, beams, first_width), self.scoring, first_width)
        among_all = (first.states[..., None] == every.states[:, None]).int().argmax(-1)
        ranked = replace(first, nodes=every.nodes.gather(1, among_all))
        second = ranked.step(self.legal.options(reading, ranked, width), self.scoring, width)
        # The draft has read all first tokens; the target shall read those that were ranked high, best first.
        tree.cut(since + 1)
        above = _append_level(tree, first, first.nodes, beams, None)
        parents = above.beams.nodes.gather(1, second.ranks[..., 1])
        return [above, _append_level(tree, second, parents, above.beams, None)]


def make_drafter(plan: SearchPlan, read: Callable[[], TreeReader], static: bool) -> Drafter:
    """The drafter of a plan. read: makes a reader of the draft model. static: no shape may depend on the draft."""
    legal = plan.legal.for_draft(plan.ending.eos, plan.constrained_softmax)
    if plan.kind in TRIE_DRAFTERS:
        assert isinstance(legal, TrieConstraint)
        below = TrieDrafter(legal, plan.nodes)
        if plan.kind == "trie":
            return below
        first, second = plan.widths
        assert second is not None
        return HybridDrafter(legal, plan.draft_scoring, (first, second), below, static, (read(),))
    widths = tuple(width for width in plan.widths if width is not None)
    return ModelDrafter(legal, plan.draft_scoring, widths, (read(),)) if widths else NoDrafter()


def _append_level(tree: Tree, beams: Beams, parents: Tensor, before: Beams, reading: TreeOutput | None) -> Level:
    """Append beams to the tree as a level. parents: slots (B, N)."""
    return Level(replace(beams, nodes=tree.append(parents, beams.tokens)), parents, before, reading)
