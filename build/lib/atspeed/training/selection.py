"""Model selection by accepted draft levels in strict speculative decoding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from atspeed.prompts import left_pad
from atspeed.training.alignment import evaluating
from beamsd import Trie, beam_search


@dataclass(frozen=True)
class Selection:
    """Strict speculative decoding of some validation prompts, as inference does it: K beams, draft width 2 K, all
    levels but the last drafted at once."""

    target: PreTrainedModel
    trie: Trie
    prompts: Sequence[Sequence[int]]
    width: int  # K

    def measure(self, draft: PreTrainedModel, batch_size: int, rank: int = 0, world: int = 1) -> Tensor:
        """Sums (3,) over this process's share of the prompts: accepted levels a round, target calls, requests."""
        sums = torch.zeros(3, dtype=torch.double, device=self.target.device)
        mine = self.prompts[rank::world]
        for start in range(0, len(mine), batch_size):
            ids, mask = (tensor.to(self.target.device) for tensor in left_pad(mine[start : start + batch_size]))
            with evaluating(draft):
                result = beam_search(
                    self.target, ids, mask, trie=self.trie, width=self.width, draft=draft, draft_width=2 * self.width,
                    gamma=self.trie.length - 1,
                )  # fmt: skip
            calls = result.target_calls.double()
            accepted = result.accepted.clamp(min=0).sum(-1) / calls
            sums += torch.stack([accepted, calls, torch.ones_like(calls)]).sum(-1)
        return sums
