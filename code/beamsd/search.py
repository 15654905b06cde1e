"""Speculative beam search: draft some levels, verify them in one target call, repeat. gamma = 0 is plain beam search.

Who drafts is the drafter's business (see `drafters`). The host looks at the device once a round: how many levels are
left, and what the drafter must know.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from beamsd.beams import Beams
from beamsd.finished import Ending, Finished
from beamsd.legal import JUNK
from beamsd.reader import Reader
from beamsd.settings import Plan, Settings
from beamsd.tree import Tree
from beamsd.verify import Level, is_open, verify

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


def rounds(
    target: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    plan: Plan,
    *,
    draft: PreTrainedModel | None = None,
    clock: Timer | None = None,
) -> Iterator[Round]:
    """Decode round by round. plan: from `Settings.plan`, for these very models and prompts."""
    clock = clock or (lambda name: nullcontext())
    ending, longest = plan.ending, input_ids.shape[1] + plan.ending.length
    room = min(ending.length, ROUNDS_KEPT) * plan.most_nodes
    tree = Tree.trunk(input_ids, attention_mask, capacity=input_ids.shape[1] + room)
    beams = Beams.at_root(tree, plan.width, ending.length, junk=plan.legal.junk)
    finished = Finished.none(beams) if ending.early else None
    reader = Reader(target, tree.capacity, longest)
    drafter = plan.drafter(draft, tree.capacity, longest)
    since = tree.size - 1  # the newest nodes, where the beams stand, begin here
    while True:
        left = (ending.length - beams.depths).masked_fill(~is_open(beams, finished, ending), 0)
        # The only host sync of a round.
        most_left, *known = torch.cat([left[None], drafter.wants(beams, left)]).amax(1).tolist()
        if not most_left:
            return
        if tree.size + plan.most_nodes > tree.capacity:
            room = min(most_left, ROUNDS_KEPT) * plan.most_nodes
            tree, beams, dropped = compacted(tree, [reader, *drafter.readers * drafter.follows], beams, room)
            since -= dropped
        with clock("draft"):
            levels = drafter.draft(tree, beams, since, most_left, known)
        with clock("target"):
            reading = reader.catch_up(tree, since)
        since = tree.size
        with clock("verify"):
            beams, finished, accepted = verify(plan, reading, tree, levels, beams, finished)
        drafted = tuple(each for reader in drafter.readers for each in reader.forwards)
        yield Round(tree, beams, finished, levels, accepted, tuple(reader.forwards), drafted)


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
    **settings: object,
) -> Result:
    """The `width` best sequences for every prompt: under strict verification those of the target's own beam search.

    target, draft: decoder-only models with the same vocabulary, in eval mode, on the device of the prompts.
    input_ids: (B, P) long, left-padded. attention_mask: (B, P), 0 where padded; None if nothing is.
    clock: sums the seconds of draft, target and verify. settings: those of `Settings`, which see; `width` is required.

    Source: AtSpeed (ICLR 2025), Algorithms 1 and 2, with tree attention.
    Raises ValueError for arguments that do not fit together, before any work.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    plan = Settings(**settings).plan(target, draft, input_ids, attention_mask)
    accepted = []
    for done in rounds(target, input_ids, attention_mask, plan, draft=draft, clock=clock):
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
    )  # fmt: skip
