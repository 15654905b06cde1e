"""Speculative beam search: draft some levels, verify them in one target call, repeat. gamma = 0 is plain beam search.

Shapes depend on (B, prompt length, K, N, gamma) and on how many levels are left, never on what the models say; the only
thing the host reads in a round is how many levels are left.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from beamsd.beams import Beams
from beamsd.reader import Reader
from beamsd.tree import Tree
from beamsd.trie import Trie
from beamsd.verify import verify_strict


class Timer(Protocol):
    """Something like a `Clock`: called with a name, it gives a context to run the named span in."""

    def __call__(self, name: str) -> AbstractContextManager: ...


@dataclass(frozen=True)
class Result:
    """The K best sequences of every request, best first, and what they cost."""

    sequences: Tensor  # (B, K, L) long, token ids; 0 throughout where there is no K-th legal sequence
    scores: Tensor  # (B, K) float32, cumulative log-probability; -inf where there is no K-th legal sequence
    accepted: Tensor  # (B, R) long, drafted levels accepted in each round; -1 in rounds after the request was finished

    @property
    def target_calls(self) -> Tensor:
        """Target forwards (B,) that each request needed, the first over the prompt included."""
        return (self.accepted >= 0).sum(-1)

    @property
    def found(self) -> Tensor:
        """How many legal sequences (B,) each request got: K, or fewer if the trie holds fewer."""
        return self.scores.isfinite().sum(-1)


@dataclass(frozen=True)
class Round:
    """What one round did."""

    tree: Tree
    beams: Beams
    levels: list[Tensor]  # slots of the drafted nodes, (B, N) a level
    accepted: Tensor  # (B,) long, drafted levels accepted; -1 where the request was finished before


def draft(
    drafter: Reader, tree: Tree, beams: Beams, frontier: int, *, trie: Trie, width: int, gamma: int
) -> list[Tensor]:
    """Grow `gamma` levels of the draft model's own beam search; returns their slots, (B, width) each."""
    levels = []
    for _ in range(gamma):
        reading = drafter.catch_up(tree, since=frontier)
        frontier = tree.size
        beams, tokens = beams.step(reading, trie, width)
        beams = replace(beams, nodes=tree.grow(beams.nodes, tokens))
        levels.append(beams.nodes)
    return levels


def rounds(
    target: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    trie: Trie,
    width: int,
    drafter: PreTrainedModel | None = None,
    draft_width: int = 0,
    gamma: int = 0,
    clock: Timer | None = None,
) -> Iterator[Round]:
    """Decode round by round; the arguments are those of `beam_search`, which see."""
    clock = clock or (lambda name: nullcontext())
    trie = trie.to(input_ids.device)
    length = remaining = trie.length
    # At worst every draft is rejected and a round gains one level. Drafting the last level has no use: the target
    # settles it in any case.
    drafted = [min(gamma, length - 1 - depth) for depth in range(length)]
    capacity = input_ids.shape[1] + sum(levels * draft_width + width for levels in drafted)
    tree = Tree.trunk(input_ids, attention_mask, capacity)
    beams = Beams.at_root(tree, width)
    target_reader = Reader(target, capacity)
    draft_reader = Reader(drafter, capacity) if gamma else None
    frontier = tree.size - 1  # the newest nodes, where the beams stand, begin here
    while remaining:
        unfinished = beams.depths < length
        with clock("draft"):
            levels = draft(
                draft_reader, tree, beams, frontier, trie=trie, width=draft_width, gamma=min(gamma, remaining - 1)
            )
        with clock("target"):
            reading = target_reader.catch_up(tree, since=frontier)
        frontier = tree.size
        with clock("verify"):
            beams, accepted = verify_strict(reading, tree, levels, beams, trie)
            accepted = torch.where(unfinished, accepted, -1)
        yield Round(tree, beams, levels, accepted)
        remaining = length - int(beams.depths.min())  # the only host sync of a round


@torch.inference_mode()
def beam_search(
    target: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    trie: Trie,
    width: int,
    drafter: PreTrainedModel | None = None,
    draft_width: int = 0,
    gamma: int = 0,
    clock: Timer | None = None,
) -> Result:
    """The `width` best sequences of the trie for every prompt, exactly those of beam search with the target alone.

    target, drafter: decoder-only models with the same vocabulary, in eval mode, on the device of the prompts.
    input_ids: (B, P) long, left-padded. attention_mask: (B, P), 0 where padded; None if nothing is.
    width: K, beams kept and returned. draft_width: N >= K, beams drafted a level. gamma: levels drafted a round;
    0, the default, is plain beam search without a drafter. clock: sums the seconds of draft, target and verify.

    Source: AtSpeed (ICLR 2025), Algorithm 1, with tree attention; strict top-K verification.
    Raises ValueError for arguments that do not fit together, before any work.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    _check(target, input_ids, attention_mask, trie, width, drafter, draft_width, gamma)
    accepted = []
    for done in rounds(
        target, input_ids, attention_mask, trie=trie, width=width,
        drafter=drafter, draft_width=draft_width, gamma=gamma, clock=clock,
    ):  # fmt: skip
        accepted.append(done.accepted)
    sequences = done.tree.paths(done.beams.nodes, trie.length)
    legal = done.beams.scores.isfinite()
    return Result(sequences.where(legal[..., None], 0), done.beams.scores, torch.stack(accepted, -1))


def _check(
    target: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, trie: Trie, width: int,
    drafter: PreTrainedModel | None, draft_width: int, gamma: int,
) -> None:  # fmt: skip
    if input_ids.dim() != 2 or input_ids.shape != attention_mask.shape:
        raise ValueError(
            f"input_ids and attention_mask must both be (B, P), not {tuple(input_ids.shape)} and "
            f"{tuple(attention_mask.shape)}"
        )
    if not bool(attention_mask[:, -1].all()):
        raise ValueError("prompts must be left-padded: the last column of attention_mask holds a 0")
    if width < 1 or gamma < 0:
        raise ValueError(f"width must be at least 1 and gamma at least 0, not {width} and {gamma}")
    if gamma and drafter is None:
        raise ValueError(f"gamma={gamma} needs a drafter; pass drafter=, or gamma=0 for plain beam search")
    if gamma and draft_width < width:
        raise ValueError(
            f"draft_width={draft_width} is below width={width}: no level could ever be accepted; "
            f"pass draft_width >= {width}"
        )
    for name, model in [("target", target), ("drafter", drafter if gamma else None)]:
        if model is not None and trie.vocabulary_size > model.config.vocab_size:
            raise ValueError(
                f"the trie holds token {trie.vocabulary_size - 1}, the {name}'s vocabulary ends at "
                f"{model.config.vocab_size - 1}: is it the trie of another tokenizer?"
            )
    if gamma and drafter.config.vocab_size != target.config.vocab_size:
        raise ValueError(
            f"target and drafter differ in vocabulary: {target.config.vocab_size} and "
            f"{drafter.config.vocab_size} tokens"
        )
