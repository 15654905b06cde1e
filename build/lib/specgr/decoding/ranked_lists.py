"""The interface of the recommenders of this package."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class RankedLists:
    """K items a row, best first. The counts are None where a recommender does not draft and verify."""

    items: Tensor  # (B, K) long; NOTHING where the recommender has no more
    scores: Tensor  # (B, K) float, descending
    rounds: Tensor | None = None  # (B,) long, verification passes until the row was done
    drafted: Tensor | None = None  # (B,) long, items verified
    accepted: Tensor | None = None  # (B,) long, those of them above the threshold


class ItemRanker(Protocol):
    """Anything that ranks items."""

    def recommend(self, histories: Tensor, k: int) -> RankedLists:
        """histories: (B, T) long, oldest first, NOTHING where there is none."""
