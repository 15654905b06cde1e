"""TIGER's own beam search, over the whole vocabulary or along the catalogue: what SpecGR is compared with."""

from dataclasses import dataclass

import torch
from torch import Tensor

from specgr.data.codes import NOTHING
from specgr.decoding.prefixes import Prefixes, TigerBeams
from specgr.decoding.ranked_lists import RankedLists
from specgr.decoding.verifier import Verifier


@dataclass(frozen=True)
class BeamSearch:
    """Recommends the items that the beams end in. Scores are sums of log-probabilities, as in `generate` with a
    length penalty of 0."""

    verifier: Verifier
    prefixes: Prefixes
    constrained: bool  # beams keep to the trie; else they may end in no item, which leaves the list shorter

    @torch.inference_mode()
    def recommend(self, histories: Tensor, k: int) -> RankedLists:
        """See `ItemRanker`."""
        beams = self.search(histories, k)
        total = beams.log_probs.sum(-1)
        items = self.prefixes.items[beams.states].masked_fill(total.isneginf(), NOTHING)
        order = (items == NOTHING).sort(stable=True).indices  # the list without its holes, in the order of the beams
        items = items.gather(1, order)
        return RankedLists(items, total.gather(1, order).masked_fill(items == NOTHING, -torch.inf))

    def search(self, histories: Tensor, width: int) -> TigerBeams:
        """The best `width` identifiers, or fewer if there are not so many. histories: (B, T)."""
        decoder = self.verifier.decoder(self.verifier.encode(histories))
        beams = TigerBeams.start(len(histories), histories.device)
        nobody = histories.new_empty(len(histories), 0)
        for depth in range(self.prefixes.levels):
            rest = nobody.new_empty(*nobody.shape, self.prefixes.levels - depth)
            log_probs, _, beams = decoder.read(beams, nobody, rest)
            beams = beams.advance(log_probs, width, self.prefixes, self.constrained)
        return beams
