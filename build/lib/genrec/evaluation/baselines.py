"""Baseline recommenders: popularity, and co-occurrence with the last item.

Both are counted on the training split alone, as a target learns from it alone, and both rank the whole catalogue.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, pairwise
from typing import Protocol

from genrec.data.splits import Interactions
from genrec.runtime.errors import UserError

POPULARITY, CO_OCCURRENCE, UP_TO_DATE, SASREC = "popularity", "co-occurrence", "co-occurrence up to date", "SASRec"
BASELINES = (POPULARITY, CO_OCCURRENCE, UP_TO_DATE, SASREC)


def check_baselines(names: Sequence[str]) -> None:
    """Raises UserError for a baseline that does not exist."""
    if set(names) - set(BASELINES):
        raise UserError(f"--baselines {','.join(names)}: choose from {','.join(BASELINES)}")


class Baseline(Protocol):
    """A recommender that returns k items, best first, for each history, oldest first."""

    def recommend(self, histories: Sequence[Sequence[int]], k: int) -> list[list[int]]: ...


class Popularity:
    """Recommends the items with the most training interactions to every user; ties by item number."""

    def __init__(self, train: Interactions, items: Iterable[int]):
        """items: the catalogue to recommend from."""
        self.count = Counter(item for history in train.values() for item in history)
        self.ranked = sorted(items, key=self._order)

    def _order(self, item: int) -> tuple[int, int]:
        return -self.count[item], item

    def recommend(self, histories: Sequence[Sequence[int]], k: int) -> list[list[int]]:
        return [self.ranked[:k] for _ in histories]


class CoOccurrence:
    """Recommends the items that most often followed the last item of the history in training sequences.

    Next come the followers of the item before it, and so on, then popular items. Ties by popularity, then item number.
    """

    def __init__(self, train: Interactions, items: Iterable[int]):
        """items: the catalogue to recommend from."""
        self.popularity = Popularity(train, items)
        count: dict[int, Counter[int]] = {}
        for history in train.values():
            for item, following in pairwise(history):
                count.setdefault(item, Counter())[following] += 1
        order = {item: rank for rank, item in enumerate(self.popularity.ranked)}
        self.followers = {
            item: sorted(after, key=lambda follower: (-after[follower], order[follower]))
            for item, after in count.items()
        }

    def recommend(self, histories: Sequence[Sequence[int]], k: int) -> list[list[int]]:
        return [list(islice(self._ranked(history), k)) for history in histories]

    def _ranked(self, history: Sequence[int]) -> Iterator[int]:
        after = (self.followers.get(item, []) for item in reversed(history))
        seen: set[int] = set()
        for item in chain(chain.from_iterable(after), self.popularity.ranked):
            if item not in seen:
                seen.add(item)
                yield item
