"""Verification of drafted levels: strict top-K, relaxed sampling (AtSpeed, Algorithms 1 and 2), and coupled sampling.

Batched and, on a GPU, without host syncs, except where logits processors make the rows go in step.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from beamsd.models.reader import TreeOutput
from beamsd.search.beams import Beams, Continuations, Level, Scoring, choose
from beamsd.search.constraints import TrieConstraint, TrieContinuations
from beamsd.search.finished import Ending, Finished
from beamsd.search.noise import ACCEPT, RESIDUAL, TARGET, gumbel, uniform
from beamsd.search.plan import SearchPlan
from beamsd.search.scoring import Sampled
from beamsd.tree import Tree


@dataclass(frozen=True)
class Strict:
    """Selects the target's own top K, whatever was drafted (Algorithm 1): lossless."""

    scoring: Scoring

    def pick(self, beams: Beams, options: Continuations, level: Level | None, width: int) -> Beams:
        return beams.step(options, self.scoring, width)


@dataclass(frozen=True)
class Relaxed:
    """Sampling, with the draft's draws kept where the target agrees (Algorithm 2).

    p and q are the target's and the draft's distribution over the *same* sequences: the continuations of the target's
    K beams. The draft drew without replacement from q. In the order of drawing, each draw x is accepted with
    probability min(1, p(x) / q(x)), and the first K accepted continue. Each rejected draw leaves one place, as far as
    places are left, to be drawn from norm(max(p - q, 0)). Where the draft simply drew too few, as under a beam's
    siblings that were dropped, the target draws from p. So a draft equal to the target gives plain sampling without
    replacement from the target. Another draft of more than one draw does not: draws after the first are tested against
    the same p and q, not against what the first has left of them. `Coupled` has no such bias.
    """

    seeds: Tensor  # (B,) long
    legal: TrieConstraint

    def pick(self, beams: Beams, options: TrieContinuations, level: Level | None, width: int) -> Beams:
        log_probs = (beams.log_probs[..., None] + options.log_probs).flatten(1)  # (B, K * C)
        states = options.states.flatten(1)
        keys = log_probs + gumbel(self.seeds, TARGET, states)  # draws from p come last, ...
        if level is not None:
            p = log_probs.double().softmax(-1)
            q = self._draft_log_probs(beams, level).double().softmax(-1)
            cell, valid = _cells(beams, options, level)
            # The last level is drafted only beside rows that have further to go; a list must not depend on them.
            valid = valid & (beams.depths + 1 < beams.sequences.shape[-1])[:, None]
            u = uniform(self.seeds, ACCEPT, level.beams.states)
            accepted = valid & (u * q.gather(1, cell) < p.gather(1, cell))
            rejected = (valid & ~accepted).sum(-1, keepdim=True)

            order = torch.arange(cell.shape[1], device=cell.device, dtype=keys.dtype)
            kept = torch.full_like(keys, -torch.inf).scatter_reduce(
                1, cell, (-order).expand_as(cell).masked_fill(~accepted, -torch.inf), "amax"
            )
            surplus = (p - q).clamp(min=0).log() + gumbel(self.seeds, RESIDUAL, states)
            surplus = surplus.masked_fill(kept.isfinite(), -torch.inf)
            best, at = surplus.topk(width)
            place = torch.arange(width, device=at.device, dtype=keys.dtype).expand_as(best)
            best = (-place).masked_fill((place >= rejected) | best.isneginf(), -torch.inf)
            # ... draws from the surplus before them, ...
            keys = torch.maximum(keys, torch.full_like(keys, -torch.inf).scatter(1, at, best + 1e6))
            keys = torch.maximum(keys, kept + 2e6)  # ... and what was accepted first.
        best = keys.masked_fill(log_probs.isneginf(), -torch.inf).topk(width).indices
        chosen = log_probs.gather(1, best)
        return beams.grown(options, best, chosen, chosen)

    def _draft_log_probs(self, beams: Beams, level: Level) -> Tensor:
        """The draft's cumulative log-probabilities (B, K * C) of the same continuations."""
        before = (beams.nodes[..., None] == level.before.nodes[:, None]).int().argmax(-1)
        same = replace(beams, nodes=level.before.nodes.gather(1, before))
        assert level.reading is not None
        options = self.legal.options(level.reading, same, width=1)
        cumulative = level.before.log_probs.gather(1, before).masked_fill(beams.illegal(), -torch.inf)
        return (cumulative[..., None] + options.log_probs).flatten(1)


@dataclass(frozen=True)
class Coupled:
    """Sampling without replacement from the target, level by level, with the very noise that the draft has drawn with.

    Draft and target rank the continuations of their beams by log-probability plus Gumbel noise, whose best K are K
    draws without replacement. The noise belongs to a request's seed and a trie state, so that where the two models
    agree their draws do, and the target's draws are its own for any draft and any N (Gumbel coupling, Daliri et al.
    2024). A level is accepted if the draft has drawn all of the target's draws.
    """

    scoring: Sampled

    def pick(self, beams: Beams, options: TrieContinuations, level: Level | None, width: int) -> Beams:
        drawn = beams.step(options, self.scoring, width)
        return replace(drawn, scores=drawn.log_probs)


def _cells(beams: Beams, options: TrieContinuations, level: Level) -> tuple[Tensor, Tensor]:
    """Where in the flattened options (B, K * C) each drafted node (B, N) stands, and whether it does."""
    under = level.parents[..., None] == beams.nodes[:, None]  # (B, N, K)
    beam, C = under.int().argmax(-1), options.states.shape[-1]
    slot = (level.beams.states - options.states[..., 0].gather(1, beam)).clamp(0, C - 1)  # children stand in a row
    return beam * C + slot, under.any(-1) & ~level.beams.log_probs.isneginf()


def verify(
    plan: SearchPlan, reading: TreeOutput, tree: Tree, levels: list[Level], beams: Beams, finished: Finished | None,
    static: bool,
) -> tuple[Beams, Finished | None, Tensor]:  # fmt: skip
    """Walk the target's own search down the drafted levels until it leaves them.

    A level is accepted only if it holds *all* of the target's beams; the level after the last accepted one comes for
    free. Rows stop independently, or all together if the plan has them go in step.

    reading: the target's, of the nodes where the last round ended and all drafted ones. static: nothing may depend on
    what tensors hold; all levels are then computed, whether they are reached or not.
    Returns the beams, whose nodes are the tree's newest, the sequences that have ended (None where none can before the
    last token), and how many levels each row accepted (B,): one less than it gained.
    """
    ending, began = plan.ending, is_open(beams, finished, plan.ending)
    stepped = going = torch.ones_like(began) if plan.in_step else began
    accepted, width = torch.zeros_like(beams.depths), ending.candidates(plan.width)
    for level in [*levels, None]:
        options = plan.legal.options(reading, beams, width)
        ahead = plan.verification.pick(beams, options, level, width)
        if finished is not None:
            ahead_finished, ahead = finished.step(ahead, ending)
            finished = choose(going, ahead_finished, finished)
        beams = choose(going, ahead, beams)
        if level is None:
            break
        drafted, slots = level.find(beams.nodes, beams.tokens)
        still = is_open(beams, finished, ending)
        # Where fewer than K prefixes are legal, the beams that fill up the width need no draft.
        drafted = (drafted | beams.illegal()).all(-1)
        if plan.in_step:
            if not bool((drafted | ~still).all() & still.any()):
                break  # a host sync, since processors must not be called needlessly
        else:
            going = going & drafted & still
            if not static and not going.any():
                break
        accepted += going & still
        beams = replace(beams, nodes=torch.where(going[:, None], slots, beams.nodes))
    # A row that did not step appends its last tokens again, so that every row's beams are the tree's newest nodes.
    parents = torch.where(stepped[:, None], beams.nodes, tree.parents.gather(1, beams.nodes))
    beams = replace(beams, nodes=tree.append(parents, beams.tokens))
    return beams, finished, torch.where(began, accepted, -1)


def is_open(beams: Beams, finished: Finished | None, ending: Ending) -> Tensor:
    """Which requests (B,) are not done."""
    return beams.depths < ending.length if finished is None else finished.open
