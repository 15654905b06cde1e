"""SpecGR: the drafter proposes, the verifier accepts, and its beams say where to draft next.

Round r (r = 1 … l), for all rows of a batch at once and every row by its own beams:
1. Draft the best δ items by the drafter's score: that were not drafted before and begin with one of the row's beams,
   which are r - 1 tokens long (the empty beam in round 1).
2. One decoder pass reads the beams' last tokens and what the drafts have beyond them: V of every draft (see `verify`)
   and what follows every beam. V > γ accepts.
3. A row with K accepted is done, and leaves the batch. The beams of the others grow by a token, width β, over the whole
   vocabulary; a beam that is no prefix in the catalogue drafts nothing.
A row that is not done after l rounds is filled up: by the best of its rejected drafts and the items that its beams end
in, by V; if those are too few, by what the drafter likes best of the rest, unverified.

The list is ranked by V, accepted or not, as published: the drafter finds items, the verifier ranks them. Where more
than K are accepted, the best K by V stand in it. Items of the history may be recommended, as in the published figures.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from specgr.configuration.specgr_settings import PUBLISHED, SpecGRSettings
from specgr.data.codes import NOTHING
from specgr.decoding.item_drafters import ItemDrafter
from specgr.decoding.prefixes import Prefixes, TigerBeams
from specgr.decoding.ranked_lists import RankedLists
from specgr.decoding.verifier import Verifier, verification_score

UNVERIFIED = -1e6  # what an item that only fills up scores at most: below any mean log-probability


@dataclass(frozen=True)
class Pool:
    """All items ever found for a row, in slots; score -inf where a slot is empty."""

    items: Tensor  # (B, slots) long
    scores: Tensor  # (B, slots) float
    accepted: Tensor  # (B, slots) bool

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> "Pool":
        none = torch.zeros(rows, 0, device=device)
        return cls(none.long(), none, none.bool())

    def add(self, rows: Tensor, items: Tensor, scores: Tensor, accepted: Tensor) -> "Pool":
        """New slots. rows: (b,) those that they are for. The others: (b, new)."""
        new = torch.zeros(len(self.items), items.shape[1], dtype=torch.long, device=items.device)
        empty = torch.full_like(new, -torch.inf, dtype=scores.dtype)
        return Pool(
            torch.cat([self.items, new.index_copy(0, rows, items)], 1),
            torch.cat([self.scores, empty.index_copy(0, rows, scores)], 1),
            torch.cat([self.accepted, new.bool().index_copy(0, rows, accepted)], 1),
        )

    def best(self, k: int) -> tuple[Tensor, Tensor]:
        """Items and scores (B, k), best first: all or the best k of the accepted, and the best others."""
        order = self.scores.sort(dim=-1, descending=True, stable=True).indices
        first = (~self.accepted.gather(1, order)).sort(dim=-1, stable=True).indices[:, :k]
        chosen = order.gather(1, first)
        scores, order = self.scores.gather(1, chosen).sort(dim=-1, descending=True, stable=True)
        items = self.items.gather(1, chosen.gather(1, order))
        return items.masked_fill(scores.isneginf(), NOTHING), scores


@dataclass(frozen=True)
class SpecGR:
    """SpecGR_Aux or SpecGR++, as the drafter is. All parts must be on one device."""

    verifier: Verifier
    drafter: ItemDrafter
    prefixes: Prefixes
    seen: Tensor  # (n_items,) bool, in the training data
    settings: SpecGRSettings = PUBLISHED

    @torch.inference_mode()
    def recommend(self, histories: Tensor, k: int) -> RankedLists:
        """See `lists.ItemRanker`. All rows hold K items, or the whole catalogue where it has no more (but for items
        that the drafter forbids). Scores are V; an item without V scores below UNVERIFIED."""
        encoded = self.verifier.encode(histories)
        left = self.drafter.scores(encoded)  # (b, n_items), -inf once drafted
        k = min(k, left.shape[1])
        decoder, beams = self.verifier.decoder(encoded), TigerBeams.start(len(left), left.device)
        rows = torch.arange(len(left), device=left.device)  # (b,) those that are not done
        pool = Pool.empty(len(left), left.device)
        rounds = torch.zeros_like(rows)
        for _ in range(self.prefixes.levels):
            items, owner, there = self.draft(left, beams)
            rest = self.prefixes.tokens[items][..., beams.depth :]
            following, drafted, beams = decoder.read(beams, owner, rest)
            row = torch.arange(len(rows), device=rows.device)[:, None]
            scores = verification_score(torch.cat([beams.log_probs[row, owner], drafted], -1), self.seen[items])
            accepted = there & (scores > self.settings.threshold)
            pool = pool.add(rows, items, scores.masked_fill(~there, -torch.inf), accepted)
            rounds[rows] += 1
            keep = (pool.accepted[rows].sum(-1) < k).nonzero()[:, 0]  # the round's one wait for the device
            if len(keep) < len(rows):
                rows, left, beams, following = rows[keep], left[keep], beams.rows(keep), following[keep]
                decoder.keep(keep)
            if not len(rows):
                break
            beams = beams.advance(following, self.settings.num_beams, self.prefixes)
        accepted, drafted = pool.accepted.sum(-1), (~pool.scores.isneginf()).sum(-1)
        if len(rows):
            pool = self._fill(pool, rows, left, beams, k)
        return RankedLists(*pool.best(k), rounds, drafted, accepted)

    def draft(self, left: Tensor, beams: TigerBeams) -> tuple[Tensor, Tensor, Tensor]:
        """The best items below the beams, struck off `left` (b, n_items); the beam of each; and whether there is one:
        (b, δ) long, long, bool."""
        below = left
        if beams.depth:
            below = left + self.prefixes.below(beams.states, beams.depth)
        best = below.topk(min(self.settings.draft_size, left.shape[1]))
        there = ~best.values.isneginf()
        _strike(left, best.indices, there)
        prefix = self.prefixes.states[beams.depth][best.indices]
        owner = (prefix[..., None] == beams.states[:, None]).int().argmax(-1)
        return best.indices, owner, there

    def _fill(self, pool: Pool, rows: Tensor, left: Tensor, beams: TigerBeams, k: int) -> Pool:
        """The pool with the items that the beams end in, and with the drafter's best of the rest."""
        items = self.prefixes.items[beams.states]
        scores = verification_score(beams.log_probs, self.seen[items])
        new = (items != NOTHING) & ~left.gather(1, items.clamp(min=0)).isneginf()
        pool = pool.add(rows, items, scores.masked_fill(~new, -torch.inf), torch.zeros_like(new))
        _strike(left, items.clamp(min=0), new)
        best = left.topk(k)
        rank = torch.arange(k, device=left.device, dtype=scores.dtype)
        unverified = (UNVERIFIED - rank).expand(len(rows), -1).masked_fill(best.values.isneginf(), -torch.inf)
        return pool.add(rows, best.indices, unverified, torch.zeros_like(best.indices, dtype=torch.bool))


def _strike(left: Tensor, items: Tensor, which: Tensor) -> None:
    """Set left (b, n_items) to -inf at `which` (b, m) of items (b, m)."""
    left.scatter_reduce_(1, items, left.new_full((), torch.inf).where(~which, -torch.inf), "amin")
