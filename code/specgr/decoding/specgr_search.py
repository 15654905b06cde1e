"""The decoding loop of SpecGR: the drafter proposes items, the verifier accepts, its beams guide the next drafts.

Round r (r = 1 … l), for all rows of a batch at once and every row by its own beams:
1. Draft the best δ items by the drafter's score: that were not drafted before and begin with one of the row's beams,
   which are r - 1 tokens long (the empty beam in round 1).
2. One decoder pass reads the beams' last tokens and what the drafts have beyond them: V of every draft (see `verifier`)
   and what follows every beam. V > γ accepts.
3. A row with K accepted is done, and leaves the batch. The beams of the others grow by a token, width β, over the whole
   vocabulary; a beam that is no prefix in the catalogue drafts nothing.
A row that is not done after l rounds is filled up: by the best of its rejected drafts and the items that its beams end
in, by V; if those are too few, by what the drafter likes best of the rest, unverified.

The list is ranked by V, accepted or not, as published: the drafter finds items, the verifier ranks them. Where more
than K are accepted, the best K by V stand in it. Items of the history may be recommended, as in the published figures.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from beamsd import Tree, Trie
from beamsd.search.beams import Beams
from beamsd.search.constraints import VocabularyContinuations
from specgr.configuration.specgr_settings import PUBLISHED, SpecGRSettings
from specgr.data.codes import NOTHING
from specgr.decoding.item_drafters import ItemDrafter
from specgr.decoding.prefixes import Prefixes
from specgr.decoding.ranked_lists import RankedLists
from specgr.decoding.verifier import TigerVerifier, verification_score
from specgr.networks.t5_reader import T5Reader, by_rows

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

    verifier: TigerVerifier
    drafter: ItemDrafter
    prefixes: Prefixes
    seen: Tensor  # (n_items,) bool, in the training data
    settings: SpecGRSettings = PUBLISHED

    @torch.inference_mode()
    def recommend(self, histories: Tensor, k: int) -> RankedLists:
        """See `ItemRanker`. All rows hold K items, or the whole catalogue where it has no more (but for items
        that the drafter forbids). Scores are V; an item without V scores below UNVERIFIED."""
        encoded, levels, width = self.verifier.encode(histories), self.prefixes.levels, self.settings.num_beams
        left = self.drafter.scores(encoded)  # (b, n_items), -inf once drafted
        k = min(k, left.shape[1])
        reader = self.verifier.reader(encoded)
        drafts = min(self.settings.draft_size, left.shape[1])
        tree = self.verifier.tiger.root(len(left), capacity=1 + (levels - 1) * (width + drafts))
        beams = parents = Beams.at_root(tree, 1, levels, invalid_score=-torch.inf)
        rows = torch.arange(len(left), device=left.device)  # (b,) those that are not done
        pool = Pool.empty(len(left), left.device)
        rounds = torch.zeros_like(rows)
        begin, known = beams, None  # what drafts go on from, and what follows it if that was read before
        for depth in range(levels):
            begun = depth if self.settings.guided else 0  # tokens of a draft that are those of its beam
            items, owner, there = self.draft(left, begin, begun)
            rest = self.prefixes.tokens[items][..., begun:]
            following, drafted = read_drafts(reader, tree, beams, owner, rest, begin, known)
            semantic = begin.log_probs.gather(1, owner) + drafted[..., :-1].sum(-1)
            scores = verification_score(semantic, drafted[..., -1], self._whole(items), levels)
            accepted = there & (scores > self.settings.threshold)
            pool = pool.add(rows, items, scores.masked_fill(~there, -torch.inf), accepted)
            rounds[rows] += 1
            if self.settings.adaptive_exit:
                keep = (pool.accepted[rows].sum(-1) < k).nonzero()[:, 0]  # the round's one wait for the device
                if len(keep) < len(rows):
                    rows, left, following = rows[keep], left[keep], following[keep]
                    beams, begin, tree = beams.rows(keep), begin.rows(keep), tree.rows(keep)
                    known = None if known is None else known[keep]
                    reader.keep_rows(keep)
            if not len(rows):
                break
            parents, beams = beams, advance(beams, following, width, self.prefixes.trie)
            if depth < levels - 1:
                beams = replace(beams, nodes=tree.append(beams.nodes, beams.tokens))
            if self.settings.guided:
                begin = beams
            elif known is None:
                known = following
        accepted, drafted = pool.accepted.sum(-1), (~pool.scores.isneginf()).sum(-1)
        if len(rows):
            pool = self._fill(pool, rows, left, beams, parents, k)
        return RankedLists(*pool.best(k), rounds, drafted, accepted)

    def draft(self, left: Tensor, beams: Beams, depth: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best items below the beams, which have `depth` tokens, struck off `left` (b, n_items); the beam of each;
        and whether there is one: (b, δ) long, long, bool."""
        below = left
        if depth:
            below = left.masked_fill(~self.prefixes.below(beams.states, depth), -torch.inf)
        best = below.topk(min(self.settings.draft_size, left.shape[1]))
        there = ~best.values.isneginf()
        _strike(left, best.indices, there)
        prefix = self.prefixes.states[depth][best.indices]
        owner = (prefix[..., None] == beams.states[:, None]).int().argmax(-1)
        return best.indices, owner, there

    def _whole(self, items: Tensor) -> Tensor:
        """Whether all tokens of the items (b, m) count in V, the identification digit too: (b, m) bool."""
        return self.seen[items] if self.settings.adjust_likelihood else torch.ones_like(items, dtype=torch.bool)

    def _fill(self, pool: Pool, rows: Tensor, left: Tensor, beams: Beams, parents: Beams, k: int) -> Pool:
        """The pool with the items that the beams end in, and with the drafter's best of the rest. parents: the beams
        that these were grown from."""
        items = self.prefixes.items[beams.states]
        semantic = parents.log_probs.gather(1, beams.ranks[..., -1])
        scores = verification_score(semantic, beams.log_probs - semantic, self._whole(items), self.prefixes.levels)
        new = (items != NOTHING) & ~left.gather(1, items.clamp(min=0)).isneginf()
        pool = pool.add(rows, items, scores.masked_fill(~new, -torch.inf), torch.zeros_like(new))
        _strike(left, items.clamp(min=0), new)
        best = left.topk(k)
        rank = torch.arange(k, device=left.device, dtype=scores.dtype)
        unverified = (UNVERIFIED - rank).expand(len(rows), -1).masked_fill(best.values.isneginf(), -torch.inf)
        return pool.add(rows, best.indices, unverified, torch.zeros_like(best.indices, dtype=torch.bool))


def read_drafts(
    reader: T5Reader, tree: Tree, beams: Beams, owner: Tensor, rest: Tensor, begin: Beams, known: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Read the beams' last tokens and, in the same pass, drafts that go on from a beam; the drafts leave no trace.

    owner: (b, M) long, the beam of `begin` that a draft begins with. rest: (b, M, l - d) long, its tokens after that.
    begin: `beams`, or earlier ones, of which `known` (b, W', V) are the log-probabilities of what follows.
    Returns the log-probabilities of what follows the beams (b, W, V) and of `rest` (b, M, l - d).
    """
    size, chain = tree.size, [begin.nodes.gather(1, owner)]
    for column in rest[..., :-1].unbind(-1):
        chain.append(tree.append(chain[-1], column))
    output = reader.catch_up(tree, reader.read)
    tree.cut(size)
    reader.forget(size)

    def log_probs(states: Tensor) -> Tensor:
        return reader.head(states).log_softmax(-1)

    vocabulary = reader.decoder.config.vocab_size
    following = by_rows(log_probs, beams.nodes.shape[1] * vocabulary, output.at(beams.nodes))
    row = torch.arange(len(owner), device=owner.device)[:, None]
    drafted = [(following if known is None else known)[row, owner, rest[..., 0]]]
    if len(chain) > 1:
        later = by_rows(
            lambda states, tokens: log_probs(states).gather(-1, tokens[..., None])[..., 0],
            rest[0, :, 1:].numel() * vocabulary, output.at(torch.cat(chain[1:], 1)), rest[..., 1:].mT.flatten(1),
        )  # fmt: skip
        drafted += later.unflatten(1, (len(chain) - 1, -1)).unbind(1)
    return following, torch.stack(drafted, -1)


def advance(beams: Beams, following: Tensor, width: int, trie: Trie) -> Beams:
    """The best `width` continuations by one token of the whole vocabulary; fewer where there are not so many.

    following: (b, W, V) log-probabilities. A beam that is no prefix of the trie is in its dead state.
    """
    best = by_rows(partial(_best, width=width), following[0].numel(), following, beams.log_probs[..., None])
    log_probs = (beams.log_probs[..., None] + following).flatten(1).gather(1, best)
    grown = beams.grown(VocabularyContinuations(following), best, log_probs, log_probs)
    parents = beams.states.gather(1, best // following.shape[-1])
    return replace(grown, states=trie.advance(parents, grown.tokens))


def _best(log_probs: Tensor, before: Tensor, width: int) -> Tensor:
    """Where the best `width` sums of log_probs (b, W, V) and before (b, W, 1) are, or all, best first: (b, W') indices
    into the flattened (b, W * V).

    They lie in the `width` columns with the highest maxima, so all of W * V need not be sorted.
    """
    total = log_probs + before
    columns = total.amax(1).topk(min(width, total.shape[2])).indices  # (b, C)
    among = total.gather(2, columns[:, None].expand(-1, total.shape[1], -1)).flatten(1)
    best = among.topk(min(width, among.shape[1])).indices
    row = best.div(columns.shape[1], rounding_mode="floor")
    return row * total.shape[2] + columns.gather(1, best % columns.shape[1])


def _strike(left: Tensor, items: Tensor, which: Tensor) -> None:
    """Set left (b, n_items) to -inf at `which` (b, m) of items (b, m)."""
    left.scatter_reduce_(1, items, left.new_full((), torch.inf).where(~which, -torch.inf), "amin")
