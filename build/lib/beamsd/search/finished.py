"""Finished sequences: EOS, length penalty and early stopping as in transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from beamsd.search.beams import INVALID_SCORE, Beams

if TYPE_CHECKING:
    from transformers import StoppingCriteriaList


@dataclass(frozen=True)
class Ending:
    """The rules; the names are those of transformers' GenerationConfig."""

    length: int  # T: tokens to generate at most
    eos: tuple[int, ...] = ()  # tokens that end a sequence
    length_penalty: float = 0.0
    early_stopping: bool | str = False
    criteria: StoppingCriteriaList | None = None  # any others, called with the sequences that transformers would give
    prompts: Tensor | None = None  # (B, P) long, what those see before the generated tokens

    @property
    def early(self) -> bool:
        """Whether a sequence can end before T tokens."""
        return bool(self.eos) or self.criteria is not None

    def candidates(self, width: int) -> int:
        """How many continuations a step looks at, so that `width` are left if as many as possible end."""
        return max(2, 1 + len(self.eos)) * width if self.early else width

    def ends(self, beams: Beams) -> Tensor:
        """Which beams (B, m) end with their last token."""
        ends = (beams.depths >= self.length)[:, None].expand_as(beams.tokens)
        for token in self.eos:
            ends = ends | (beams.tokens == token)
        if self.criteria:
            assert self.prompts is not None
            generated = beams.sequences[..., : int(beams.depths[0])]
            sequences = torch.cat([self.prompts[:, None].expand(-1, generated.shape[1], -1), generated], -1)
            ends = ends | self.criteria(sequences.flatten(0, 1), None).view_as(ends)
        return ends & ~beams.scores.isneginf()

    def penalty(self, depths: Tensor) -> Tensor:
        """What to divide the scores (B, m) of sequences of `depths` (B,) tokens by: (B, 1) float32."""
        return (depths.double() ** self.length_penalty).float()[:, None]


@dataclass
class Finished:
    """The K best sequences of every request that have ended, best first."""

    scores: Tensor  # (B, K) float32, penalised for the length
    log_probs: Tensor  # (B, K) float32, cumulative log-probability
    ended: Tensor  # (B, K) bool; the others are places not taken yet
    sequences: Tensor  # (B, K, T) long
    ranks: Tensor  # (B, K, T) long, -1 after the end
    open: Tensor  # (B,) bool, better ones may yet come

    @classmethod
    def none(cls, beams: Beams) -> Finished:
        return cls(
            torch.full_like(beams.scores, INVALID_SCORE), torch.full_like(beams.log_probs, INVALID_SCORE),
            torch.zeros_like(beams.scores, dtype=torch.bool), beams.sequences, beams.ranks,
            torch.ones_like(beams.depths, dtype=torch.bool),
        )  # fmt: skip

    def step(self, candidates: Beams, ending: Ending) -> tuple[Finished, Beams]:
        """Split the `candidates`, best first, into sequences that end, of which the best are kept, and running beams.

        The arithmetic is that of transformers' beam search, step by step, so that ties are broken alike.
        """
        K, depths, ends = self.scores.shape[1], candidates.depths, ending.ends(candidates)
        goes_on = (candidates.scores + ends * INVALID_SCORE).topk(K)
        running = candidates.take(goes_on.indices)
        running.scores = goes_on.values
        running.log_probs = running.log_probs + ends.gather(1, goes_on.indices) * INVALID_SCORE

        won = ends & (torch.arange(ends.shape[1], device=ends.device) < K)  # the rest only replaces beams that end
        full = self.ended.all(-1, keepdim=True) & (ending.early_stopping is True)
        scores = candidates.scores / ending.penalty(depths)
        scores = scores + full * INVALID_SCORE + ~self.open[:, None] * INVALID_SCORE + ~won * INVALID_SCORE
        best = torch.cat([self.scores, scores], 1).topk(K)
        history = best.indices[..., None].expand_as(self.sequences)
        kept = Finished(
            best.values,
            torch.cat([self.log_probs, candidates.log_probs], 1).gather(1, best.indices),
            torch.cat([self.ended, won], 1).gather(1, best.indices),
            torch.cat([self.sequences, candidates.sequences], 1).gather(1, history),
            torch.cat([self.ranks, candidates.ranks], 1).gather(1, history),
            self.open,
        )
        kept.open = self.open & (depths < ending.length) & kept._may_improve(running, ending)
        return kept, running

    def _may_improve(self, running: Beams, ending: Ending) -> Tensor:
        """Whether (B,) the best running beam may yet beat the worst finished one, as transformers estimates it."""
        full = self.ended.all(-1) & (ending.early_stopping is True)
        depths = running.depths
        if ending.early_stopping == "never" and ending.length_penalty > 0:
            depths = torch.full_like(depths, ending.length)
        possible = running.scores[:, :1] / ending.penalty(depths)
        worst = torch.where(self.ended, self.scores.amin(-1, keepdim=True), INVALID_SCORE)
        return (possible > worst).any(-1) & ~full
