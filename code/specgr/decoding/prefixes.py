"""The prefixes of the catalogue's identifiers, and beams that grow over them token by token."""

from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from beamsd import Trie
from specgr.data.codes import NOTHING, PAD, Codes
from specgr.networks.t5_tree import by_rows


@dataclass(frozen=True)
class Prefixes:
    """Which items lie below which prefix. A prefix is a state of the trie, see `beamsd.Trie`."""

    tokens: Tensor  # (n_items, l) long, `Codes.tokens`
    trie: Trie
    states: Tensor  # (l + 1, n_items) long, the prefix of an item after so many tokens
    items: Tensor  # (n_states,) long, the item whose identifier ends there; NOTHING inside the trie
    keys: Tensor  # (n_states - 3,) long, ascending: the state before, times V, plus the token that leads to a state
    runs: tuple[tuple[int, int], ...]  # (l + 1,) the first prefix after so many tokens, and how many there are

    @classmethod
    def of(cls, codes: Codes) -> "Prefixes":
        trie = Trie(codes.tokens)
        states = trie.walk(codes.tokens).T.contiguous()
        items = torch.full_like(trie.tokens, NOTHING)
        items[states[-1]] = torch.arange(len(codes.tokens), device=items.device)
        children = trie.first_child.diff()[: trie.end]
        parents = torch.arange(trie.end, device=children.device).repeat_interleave(children)
        keys = parents * trie.vocabulary_size + trie.tokens[1 : trie.end]
        runs = tuple((int(level.min()), int(level.max() - level.min()) + 1) for level in states)
        return cls(codes.tokens, trie, states, items, keys, runs)

    @property
    def levels(self) -> int:
        return self.tokens.shape[1]

    def advance(self, prefixes: Tensor, tokens: Tensor) -> Tensor:
        """The prefixes (...) after one more token (...) each; dead where no item goes on like that.

        What `Trie.advance` does, without listing children: a search among all states.
        """
        wanted = prefixes * self.trie.vocabulary_size + tokens
        place = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        there = (self.keys[place] == wanted) & (tokens < self.trie.vocabulary_size)
        return torch.where(there, place + 1, self.trie.dead)

    def below(self, prefixes: Tensor, depth: int) -> Tensor:
        """Which items lie below one of the row's prefixes. prefixes: (B, W) states after `depth` tokens, or dead.

        Returns (B, n_items) float, to be added to scores: 0 below a prefix, else -inf.
        """
        first, count = self.runs[depth]
        allowed = torch.full((len(prefixes), count + 1), -torch.inf, device=prefixes.device)
        allowed.scatter_(1, (prefixes - first).clamp(max=count), 0.0)  # the last for the dead
        return allowed.index_select(1, (self.states[depth] - first).int())  # int, which is the faster one


@dataclass(frozen=True)
class TigerBeams:
    """W prefixes a row, best first."""

    tokens: Tensor  # (B, W, d) long
    states: Tensor  # (B, W) long, in the trie of the catalogue; dead where no item begins like this
    log_probs: Tensor  # (B, W, d) float, of each token given those before
    path: Tensor  # (B, W, d) long, where the decoder's cache holds the start and the tokens, all but the last

    @classmethod
    def start(cls, rows: int, device: torch.device) -> "TigerBeams":
        """The empty prefix."""
        none = torch.zeros(rows, 1, 0, device=device)
        return cls(none.long(), torch.zeros(rows, 1, dtype=torch.long, device=device), none, none.long())

    @property
    def depth(self) -> int:
        """d, tokens of a prefix."""
        return self.tokens.shape[-1]

    @property
    def last(self) -> Tensor:
        """What the decoder is to read next (B, W)."""
        return self.tokens[..., -1] if self.depth else torch.full_like(self.states, PAD)

    def rows(self, keep: Tensor) -> "TigerBeams":
        """The rows `keep` (b,) alone."""
        return TigerBeams(*(getattr(self, field.name)[keep] for field in fields(self)))

    def advance(self, log_probs: Tensor, width: int, prefixes: Prefixes, constrained: bool = False) -> "TigerBeams":
        """The best `width` continuations by one token; fewer where there are not so many.

        log_probs: (B, W, V) of the next token. constrained: along the catalogue alone, where what
        only fills up has log-probability -inf; else over the whole vocabulary.
        """
        if constrained:
            trie = prefixes.trie
            states = trie.children(self.states)  # (B, W, C)
            log_probs = log_probs.gather(-1, trie.tokens[states]).masked_fill(states == trie.dead, -torch.inf)
        before = self.log_probs.sum(-1, keepdim=True)
        grown = by_rows(partial(_best, width=width), log_probs[0].numel(), log_probs, before)
        parent, option = grown.unbind(-1)  # (B, W') each
        row = torch.arange(len(parent), device=parent.device)[:, None]
        if constrained:
            reached = states[row, parent, option]
            token = trie.tokens[reached]
        else:
            token = option
            reached = prefixes.advance(self.states.gather(1, parent), token)
        return TigerBeams(
            torch.cat([self.tokens[row, parent], token[..., None]], -1),
            reached,
            torch.cat([self.log_probs[row, parent], log_probs[row, parent, option, None]], -1),
            self.path[row, parent],
        )


def _best(log_probs: Tensor, before: Tensor, width: int) -> Tensor:
    """Where the best `width` sums of log_probs (B, W, V) and before (B, W, 1) are, or all, best first: (B, W', 2).

    They lie in the `width` columns with the highest maxima, so all of W * V need not be sorted.
    """
    total = log_probs + before
    columns = total.amax(1).topk(min(width, total.shape[2])).indices  # (B, C)
    among = total.gather(2, columns[:, None].expand(-1, total.shape[1], -1)).flatten(1)
    best = among.topk(min(width, among.shape[1])).indices
    row = best.div(columns.shape[1], rounding_mode="floor")
    return torch.stack([row, columns.gather(1, best % columns.shape[1])], -1)
