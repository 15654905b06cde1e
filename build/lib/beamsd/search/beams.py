"""Beams, and the one step of beam search that target, draft and baseline share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from beamsd.models.reader import TreeOutput
from beamsd.tree import Tree

Rows = TypeVar("Rows", bound=Any)  # a dataclass of tensors
INVALID_SCORE = -1e9  # what transformers adds to a score that must not win


class Continuations(Protocol):
    """The continuations of K beams by one token, C each."""

    @property
    def log_probs(self) -> Tensor:
        """(B, K, C) float32, of that token; -inf where it is not legal."""

    def at(self, best: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and trie states of the continuations `best` (B, m), indices into the flattened (B, K * C)."""


# Maps beams and their continuations to scores and cumulative log-probabilities, (B, K, C) float32 each. Those that draw
# at random take the continuations of a trie.
Scoring: TypeAlias = "Callable[[Beams, Any], tuple[Tensor, Tensor]]"


@dataclass
class Beams:
    """The running beams of a batch, best first. B requests, K beams, T tokens at most."""

    scores: Tensor  # (B, K) float32, what the search ranks by
    log_probs: Tensor  # (B, K) float32, cumulative log-probability; the scores themselves unless noise is added
    nodes: Tensor  # (B, K) long, tree slot of the last token
    tokens: Tensor  # (B, K) long, the last token
    states: Tensor  # (B, K) long, trie state after it; unused without a trie
    sequences: Tensor  # (B, K, T) long, the tokens generated so far
    ranks: Tensor  # (B, K, T) long, which beam of the step before every token continued; -1 where there is none yet
    depths: Tensor  # (B,) long, tokens generated so far

    @classmethod
    def at_root(cls, tree: Tree, width: int, length: int, invalid_score: float) -> Beams:
        """Initial beams: `width` copies of the prompt's last node, for one shape in all rounds; the first can win.

        length: T. invalid_score: the score of the other copies.
        """
        B, device = tree.tokens.shape[0], tree.tokens.device
        scores = torch.full((B, width), invalid_score, device=device)
        scores[:, 0].fill_(0)  # an assignment would bring its value from the host
        zeros = torch.zeros(B, width, dtype=torch.long, device=device)
        history = zeros[..., None].expand(B, width, length)
        nodes = zeros + (tree.size - 1)
        tokens = tree.tokens.gather(1, nodes)
        return cls(scores, scores, nodes, tokens, zeros, history, history - 1, zeros[:, 0])

    def step(self, options: Continuations, scoring: Scoring, width: int) -> Beams:
        """The `width` best continuations, best first. Their `nodes` are still those of the parents."""
        scores, log_probs = scoring(self, options)
        best_scores, best = scores.flatten(1).topk(width)
        return self.grown(options, best, best_scores, log_probs.flatten(1).gather(1, best))

    def grown(self, options: Continuations, best: Tensor, scores: Tensor, log_probs: Tensor) -> Beams:
        """The continuations `best` (B, m), as indices into the flattened options, with their scores (B, m)."""
        parents = best // options.log_probs.shape[-1]
        tokens, states = options.at(best)
        # Finished rows are still extended (fixed shapes); the result is discarded.
        here = self.depths.clamp(max=self.sequences.shape[-1] - 1)[:, None, None].expand(*best.shape, 1)
        history = parents[..., None].expand(*best.shape, self.sequences.shape[-1])
        return Beams(
            scores, log_probs, self.nodes.gather(1, parents), tokens, states,
            sequences=self.sequences.gather(1, history).scatter(2, here, tokens[..., None]),
            ranks=self.ranks.gather(1, history).scatter(2, here, parents[..., None]),
            depths=self.depths + 1,
        )  # fmt: skip

    def illegal(self) -> Tensor:
        """Which beams (B, K) are invalid and only fill up the width."""
        return self.log_probs < INVALID_SCORE / 2

    def rows(self, rows: Tensor) -> Beams:
        """The beams of these rows (b,) alone."""
        return Beams(*(getattr(self, field.name)[rows] for field in fields(self)))

    def take(self, slots: Tensor) -> Beams:
        """The beams at `slots` (B, m), in that order."""
        history = slots[..., None].expand(*slots.shape, self.sequences.shape[-1])
        taken = {
            name: getattr(self, name).gather(1, slots) for name in ("scores", "log_probs", "nodes", "tokens", "states")
        }  # fmt: skip
        taken |= {name: getattr(self, name).gather(1, history) for name in ("sequences", "ranks")}
        return Beams(**taken, depths=self.depths)


@dataclass(frozen=True)
class Level:
    """A drafted level: N beams, in the order in which they were drafted."""

    beams: Beams  # (B, N); `nodes` are their slots in the tree
    parents: Tensor  # (B, N) long, slots of their parent nodes
    before: Beams  # the beams they were grown from
    reading: TreeOutput | None  # the draft model's outputs at those; None if others drafted too

    def find(self, parents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Which (parent, token) pairs (B, K) were drafted, and in which slot (any, where they were not).

        >>> tree = Tree.trunk(torch.tensor([[1, 2, 3]]), None, capacity=5)
        >>> beams = replace(Beams.at_root(tree, 2, 4, -torch.inf), tokens=torch.tensor([[7, 8]]))
        >>> beams.nodes = tree.append(torch.tensor([[1, 2]]), beams.tokens)   # 7 below slot 1, 8 below slot 2
        >>> level = Level(beams, parents=torch.tensor([[1, 2]]), before=beams, reading=None)
        >>> level.find(torch.tensor([[2, 2]]), torch.tensor([[8, 7]]))        # 8 below slot 2 was drafted, 7 was not
        (tensor([[ True, False]]), tensor([[4, 3]]))
        """
        hit = (self.parents[:, None] == parents[..., None]) & (self.beams.tokens[:, None] == tokens[..., None])
        return hit.any(-1), self.beams.nodes.gather(1, hit.int().argmax(-1))


def choose(rows: Tensor, these: Rows, others: Rows) -> Rows:
    """A dataclass of tensors (B, ...): `these` in the rows (B,) that are true, `others` elsewhere."""
    chosen = {}
    for field in fields(these):
        a, b = getattr(these, field.name), getattr(others, field.name)
        chosen[field.name] = torch.where(rows.view(-1, *[1] * (a.dim() - 1)), a, b)
    return replace(these, **chosen)
