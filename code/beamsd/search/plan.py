"""The settings of a search, resolved for one batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from beamsd.search.beams import Beams, Level, Scoring
from beamsd.search.constraints import Constraint, TrieConstraint
from beamsd.search.finished import Ending

TRIE_DRAFTERS = ("trie", "hybrid")  # which take a trie, and draft so many `nodes` a round at most


class Verification(Protocol):
    def pick(self, beams: Beams, options: Any, level: Level | None, width: int) -> Beams:
        """The `width` continuations that the target selects; `nodes` are still those of the parents.

        options: the target's `Continuations`. level: what was drafted here, None where nothing was.
        """


@dataclass(frozen=True)
class SearchPlan:
    """The resolved settings of a search."""

    legal: Constraint
    ending: Ending
    verification: Verification
    draft_scoring: Scoring
    width: int
    kind: str  # of drafter
    widths: tuple[int | None, ...]  # of the levels that the draft model ranks
    nodes: int  # that "trie" and "hybrid" draft a round, at most
    constrained_softmax: bool  # of the draft
    tree_attention: bool
    in_step: bool  # the rows of a batch stand at the same depth
    seeds: Tensor | None  # (B,) long, what verification and scoring draw from
    shortest: int  # tokens of the shortest prompt
    longest: int  # of the longest
    largest: int  # token id among the prompts

    @property
    def key(self) -> tuple:
        """What the program of a round depends on, beside the models and the shape of the batch."""
        ending = self.ending
        trie = id(self.legal.trie) if isinstance(self.legal, TrieConstraint) else None
        return (
            self.width, self.kind, self.widths, self.nodes, self.constrained_softmax, trie, type(self.verification),
            type(self.draft_scoring),
            ending.length, ending.eos, ending.length_penalty, ending.early_stopping,
        )  # fmt: skip

    @property
    def is_recordable(self) -> bool:
        """Whether a program may be made of it, which has static shapes and holds nothing of one batch's requests."""
        return self.tree_attention and (not isinstance(self.legal, TrieConstraint) or self.legal.blocked is None)

    @property
    def most_nodes(self) -> int:
        """How many nodes a round adds at most."""
        drafted = sum(width or 0 for width in self.widths)
        if self.kind in TRIE_DRAFTERS:
            assert isinstance(self.legal, TrieConstraint)
            drafted = max(drafted + self.nodes, self.legal.trie.fanout)
        return drafted + self.width
