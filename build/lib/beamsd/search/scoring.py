"""What beam search ranks by: log-probabilities, or log-probabilities with noise; each is a `Scoring`."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from beamsd.search.beams import Beams, Continuations
from beamsd.search.constraints import TrieContinuations
from beamsd.search.noise import DRAFT, PERTURB, gumbel


def likelihood(beams: Beams, options: Continuations) -> tuple[Tensor, Tensor]:
    """Plain beam search: the best are the likeliest."""
    log_probs = beams.log_probs[..., None] + options.log_probs
    return log_probs, log_probs


@dataclass
class Trace:
    """Records the target's log-probabilities at every level of plain beam search under a trie.

    Pass one as `trace` to `beam_search`; it holds one batch.
    """

    states: list[Tensor] = field(default_factory=list)  # (B, K) long each, the beams' states before the level's token
    log_probs: list[Tensor] = field(default_factory=list)  # (B, K, C) float32 each, of the children of those states

    def __call__(self, beams: Beams, options: TrieContinuations) -> tuple[Tensor, Tensor]:
        self.states.append(beams.states)
        self.log_probs.append(options.log_probs)
        return likelihood(beams, options)


@dataclass(frozen=True)
class Sampled:
    """Draws continuations without replacement, in order, from the softmax of their cumulative log-probabilities."""

    seeds: Tensor  # (B,) long

    def __call__(self, beams: Beams, options: TrieContinuations) -> tuple[Tensor, Tensor]:
        log_probs = beams.log_probs[..., None] + options.log_probs
        return (log_probs + gumbel(self.seeds, DRAFT, options.states)).float(), log_probs


@dataclass(frozen=True)
class StochasticBeams:
    """Stochastic beam search (Kool et al. 2019, algorithm 1): the best K are K draws without replacement from the
    distribution over whole sequences, each step of it renormalised over the legal children.

    A prefix's noise depends on the request's seed and the trie state alone, so a draft perturbs by the same noise.
    """

    seeds: Tensor  # (B,) long

    def __call__(self, beams: Beams, options: TrieContinuations) -> tuple[Tensor, Tensor]:
        log_probs = beams.log_probs[..., None].double() + options.log_probs.double().log_softmax(-1)
        illegal = options.log_probs.isneginf() | beams.log_probs.isneginf()[..., None]
        # All ends are one state of the trie, but each has noise of its own.
        trie, states = options.trie, options.states
        states = torch.where(states == trie.end, trie.dead + beams.states[..., None], states)
        perturbed = log_probs + gumbel(self.seeds, PERTURB, states)
        perturbed = perturbed.masked_fill(illegal, -torch.inf)
        # Given that their maximum is the parent's score (Kool et al., appendix B.3, the stable form).
        parent, best = beams.scores[..., None].double(), perturbed.amax(-1, keepdim=True)
        v = parent - perturbed + _log1mexp(perturbed - best)
        scores = parent - v.relu() - (-v.abs()).exp().log1p()
        return scores.masked_fill(illegal, -torch.inf).float(), log_probs.masked_fill(illegal, -torch.inf).float()


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0."""
    return torch.where(x > -0.6931, (-x.expm1()).log(), (-x.exp()).log1p())
