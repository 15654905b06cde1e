"""Constrained decoding: the valid continuations of beams, along a trie or over the whole vocabulary."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import PrefixConstrainedLogitsProcessor

from beamsd.compat import is_builtin
from beamsd.models.reader import TreeOutput
from beamsd.search.beams import INVALID_SCORE, Beams, Continuations
from beamsd.trie import Trie

# The library's own processors are functions of their arguments, so a draft may call them too, all but these.
STATEFUL = ("UnbatchedClassifierFreeGuidanceLogitsProcessor", "SynthIDTextWatermarkLogitsProcessor")
# Those that `generate` calls before its prefix_allowed_tokens_fn.
EARLY = (
    "UnbatchedClassifierFreeGuidanceLogitsProcessor", "SequenceBiasLogitsProcessor",
    "EncoderRepetitionPenaltyLogitsProcessor", "RepetitionPenaltyLogitsProcessor", "NoRepeatNGramLogitsProcessor",
    "EncoderNoRepeatNGramLogitsProcessor", "NoBadWordsLogitsProcessor", "MinLengthLogitsProcessor",
    "MinNewTokensLengthLogitsProcessor",
)  # fmt: skip


class Constraint(Protocol):
    """Lists the continuations of beams."""

    invalid_score: float  # the score of a beam that only fills up the width

    def options(self, reading: TreeOutput, beams: Beams, width: int) -> Continuations:
        """At least `width` in all. reading: of nodes that include all of `beams.nodes`."""

    def for_draft(self, eos: tuple[int, ...], constrained_softmax: bool) -> "Constraint":
        """The same for a draft, which never goes past the end of a sequence. constrained_softmax: see `Settings`."""


@dataclass(frozen=True)
class TrieContinuations:
    """The `Continuations` under a trie."""

    log_probs: Tensor
    states: Tensor  # (B, K, C) long
    trie: Trie

    def at(self, best: Tensor) -> tuple[Tensor, Tensor]:
        states = self.states.flatten(1).gather(1, best)
        return self.trie.tokens[states], states


@dataclass(frozen=True)
class TrieConstraint:
    """Constrains sequences to a trie, without masks as wide as the vocabulary."""

    trie: Trie
    never: tuple[int, ...] = ()
    constrained_softmax: bool = False  # log-probabilities among the legal tokens, not in the whole vocabulary
    blocked: Tensor | None = None  # (B, n_states) bool, the states that are not legal for a row; see `Trie.blocked`
    invalid_score = -torch.inf

    def options(self, reading: TreeOutput, beams: Beams, width: int) -> TrieContinuations:
        legal = self.children(beams, width)
        logits, illegal = reading.logits(beams.nodes), legal.log_probs.isneginf()
        scores = logits.gather(-1, self.trie.tokens[legal.states])
        among = scores.masked_fill(illegal, -torch.inf) if self.constrained_softmax else logits
        log_probs = scores - among.logsumexp(-1, keepdim=True)
        return replace(legal, log_probs=log_probs.masked_fill(illegal, -torch.inf))

    def children(self, beams: Beams, width: int) -> TrieContinuations:
        """The continuations without scores: 0 where legal. At least `width` in all."""
        states = self.trie.children(beams.states, slots=-(-width // beams.states.shape[1]))  # (B, K, C)
        if self.blocked is not None:
            blocked = self.blocked.gather(1, states.flatten(1)).view_as(states)
            states = states.masked_fill(blocked, self.trie.dead)
        illegal = states == self.trie.dead
        for token in self.never:
            illegal = illegal | (self.trie.tokens[states] == token)
        none = torch.zeros(states.shape, device=states.device)
        return TrieContinuations(none.masked_fill_(illegal, -torch.inf), states, self.trie)

    def for_draft(self, eos: tuple[int, ...], constrained_softmax: bool) -> "TrieConstraint":
        return replace(self, never=eos, constrained_softmax=constrained_softmax)


@dataclass(frozen=True)
class VocabularyContinuations:
    """The `Continuations` without a trie: a slot is a token."""

    log_probs: Tensor

    def at(self, best: Tensor) -> tuple[Tensor, Tensor]:
        return best % self.log_probs.shape[-1], torch.zeros_like(best)


@dataclass(frozen=True)
class VocabularyConstraint:
    """Allows every token of the vocabulary but those that logits processors forbid."""

    processors: LogitsProcessorList | None = None
    prompts: Tensor | None = None  # (B, P) long; what processors see before a beam's own tokens
    group: int = 0  # K: processors see B * K sequences at a time, as they do in transformers
    draft: bool = False
    never: tuple[int, ...] = ()
    raw: bool = False  # logits in place of log-probabilities
    invalid_score = INVALID_SCORE  # as in transformers, whose list such beams may end up in

    def options(self, reading: TreeOutput, beams: Beams, width: int) -> VocabularyContinuations:
        logits = reading.logits(beams.nodes)  # (B, K, V)
        # The same operations as in transformers' beam search, so that even ties are settled alike.
        log_probs = logits if self.raw else logits.log_softmax(-1)
        if self.processors:
            log_probs = self._processed(log_probs, beams)
        for token in self.never:
            log_probs[..., token].fill_(-torch.inf)
        return VocabularyContinuations(log_probs)

    def for_draft(self, eos: tuple[int, ...], constrained_softmax: bool) -> "VocabularyConstraint":
        """Without the processors that may hold a state, so that the target's see what they see in transformers: those
        that are not of the library."""
        pure = [
            processor for processor in self.processors or []
            if is_builtin(processor) and type(processor).__name__ not in STATEFUL
        ]  # fmt: skip
        return replace(self, processors=LogitsProcessorList(pure), draft=True, never=eos)

    def _processed(self, log_probs: Tensor, beams: Beams) -> Tensor:
        """Calls the processors with sequences and log-probabilities of the shapes that transformers gives them.

        All rows stand at the same depth here. A draft's beams come in groups of K, the last one filled up.
        """
        assert self.processors is not None
        assert self.prompts is not None
        B, K, V = log_probs.shape
        sequences = beams.sequences[..., : int(beams.depths[0])]
        if self.draft:
            # Processors do not see invalid prefixes; the best beam takes their place.
            illegal = beams.illegal()[..., None]
            sequences = torch.where(illegal, sequences[:, :1], sequences)
        sequences = torch.cat([self.prompts[:, None].expand(B, K, -1), sequences], -1)
        parts = []
        for start in range(0, K, self.group):
            slots = torch.arange(start, start + self.group, device=log_probs.device).clamp(max=K - 1)
            scores = self.processors(sequences[:, slots].flatten(0, 1), log_probs[:, slots].flatten(0, 1))
            parts.append(scores.view(B, self.group, V)[:, : K - start])
        processed = torch.cat(parts, 1)
        return processed.masked_fill(illegal, -torch.inf) if self.draft else processed


def constrained(processors: LogitsProcessorList, trie: Trie, prompt: int, width: int) -> LogitsProcessorList:
    """The processors with a trie among them, where `generate` puts its prefix_allowed_tokens_fn: the slow way to
    follow a trie, for log-probabilities that are to be processed. prompt: its tokens, P."""

    def allowed(_: int, sequence: Tensor) -> list[int]:
        children = trie.children(trie.walk(sequence[prompt:])[-1])
        # After an illegal prefix, whose score is lost already, the processor asks for some token all the same.
        return trie.tokens[children[children != trie.dead]].tolist() or [trie.eos or 0]

    before = next((i for i, each in enumerate(processors) if type(each).__name__ not in EARLY), len(processors))
    prefix = PrefixConstrainedLogitsProcessor(allowed, width)
    return LogitsProcessorList([*processors[:before], prefix, *processors[before:]])
