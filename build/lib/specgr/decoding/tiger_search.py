"""TIGER's own beam search, over the whole vocabulary or along the catalogue: what SpecGR is compared with."""

from dataclasses import dataclass

import torch
from torch import Tensor

from beamsd import Result, Settings
from beamsd.search.beam_search import decode
from beamsd.search.state import SearchState
from specgr.data.codes import NOTHING
from specgr.decoding.prefixes import Prefixes
from specgr.decoding.ranked_lists import RankedLists
from specgr.decoding.verifier import TigerVerifier


@dataclass(frozen=True)
class BeamSearch:
    """Recommends the items that the beams end in. Scores are sums of log-probabilities, as in `generate` with a
    length penalty of 0."""

    verifier: TigerVerifier
    prefixes: Prefixes
    constrained: bool  # beams keep to the trie; else they may end in no item, which leaves the list shorter
    drafter: str = "none"  # or "trie", if constrained: the same lists, in fewer and wider forwards

    @torch.inference_mode()
    def recommend(self, histories: Tensor, k: int) -> RankedLists:
        """See `ItemRanker`."""
        found = self.search(histories, k)
        states = self.prefixes.trie.walk(found.sequences)[..., -1]
        items = self.prefixes.items[states].masked_fill(found.scores.isneginf(), NOTHING)
        order = (items == NOTHING).sort(stable=True).indices  # the list without its holes, in the order of the beams
        items = items.gather(1, order)
        return RankedLists(items, found.scores.gather(1, order).masked_fill(items == NOTHING, -torch.inf))

    def search(self, histories: Tensor, width: int) -> Result:
        """The best `width` identifiers. histories: (B, T)."""
        tiger, encoded = self.verifier.tiger, self.verifier.encode(histories)
        start = tiger.root(len(histories), capacity=1).tokens
        trie = self.prefixes.trie if self.constrained else None
        settings = Settings(width=width, trie=trie, max_new_tokens=self.prefixes.levels, drafter=self.drafter)
        plan = settings.resolve(start, torch.ones_like(start))
        reader = self.verifier.reader(encoded)
        return decode(SearchState(plan, start, torch.ones_like(start), lambda capacity: reader))
