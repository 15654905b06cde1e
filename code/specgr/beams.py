"""The prefixes of the catalogue's identifiers, and beams that grow over them token by token."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from beamsd import Trie
from specgr.tokens import NOTHING, PAD, Codes


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

        Returns (B, n_items) bool.
        """
        first, count = self.runs[depth]
        held = torch.zeros(len(prefixes), count + 1, dtype=torch.bool, device=prefixes.device)
        held.scatter_(1, (prefixes - first).clamp(max=count), True)  # the last for the dead
        return held[:, self.states[depth] - first]


@dataclass(frozen=True)
class Beams:
    """W prefixes a row, best first."""

    tokens: Tensor  # (B, W, d) long
    states: Tensor  # (B, W) long, in the trie of the catalogue; dead where no item begins like this
    log_probs: Tensor  # (B, W, d) float, of each token given those before
    path: Tensor  # (B, W, d) long, where the decoder's cache holds the start and the tokens, all but the last

    @classmethod
    def start(cls, rows: int, device: torch.device) -> "Beams":
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

    def rows(self, keep: Tensor) -> "Beams":
        """The rows `keep` (b,) alone."""
        return Beams(*(getattr(self, field.name)[keep] for field in fields(self)))

    def advance(self, log_probs: Tensor, width: int, prefixes: Prefixes, constrained: bool = False) -> "Beams":
        """The best `width` continuations by one token; fewer where there are not so many.

        log_probs: (B, W, V) of the next token. constrained: along the catalogue alone, where what
        only fills up has log-probability -inf; else over the whole vocabulary.
        """
        batch, _, vocabulary = log_probs.shape
        if constrained:
            trie = prefixes.trie
            states = trie.children(self.states)  # (B, W, C)
            log_probs = log_probs.gather(-1, trie.tokens[states]).masked_fill(states == trie.dead, -torch.inf)
        options = log_probs.shape[-1]
        total = (log_probs + self.log_probs.sum(-1, keepdim=True)).flatten(1)
        best = total.topk(min(width, total.shape[1])).indices  # (B, W')
        parent = best.div(options, rounding_mode="floor")
        if constrained:
            reached = states.flatten(1).gather(1, best)
            token = trie.tokens[reached]
        else:
            token = best % vocabulary
            reached = prefixes.advance(self.states.gather(1, parent), token)
        row = torch.arange(batch, device=best.device)[:, None]
        return Beams(
            torch.cat([self.tokens[row, parent], token[..., None]], -1),
            reached,
            torch.cat([self.log_probs[row, parent], log_probs.flatten(1).gather(1, best)[..., None]], -1),
            self.path[row, parent],
        )
