"""Recall and NDCG of ranked lists, against all the items that a user went on to choose."""

import math
from collections.abc import Iterable, Sequence


def recall(ranked: list[int], labels: Iterable[int], k: int) -> float:
    """The share of `labels` among the first `k` of `ranked`: hits / labels."""
    wanted = set(labels)
    return len(wanted.intersection(ranked[:k])) / len(wanted)


def ndcg(ranked: list[int], labels: Iterable[int], k: int) -> float:
    """Discounted cumulative gain with binary relevance, 1 / log2(rank + 1), over that of the best possible list."""
    wanted = set(labels)
    gain = sum(1 / math.log2(rank + 2) for rank, item in enumerate(ranked[:k]) if item in wanted)
    return gain / sum(1 / math.log2(rank + 2) for rank in range(min(k, len(wanted))))


def quality(ranked: list[int], labels: Iterable[int], cutoffs: Sequence[int]) -> dict[str, float]:
    """Recall@k and NDCG@k by name, for every cutoff k."""
    return {f"{name}@{k}": metric(ranked, labels, k) for name, metric in METRICS.items() for k in cutoffs}


METRICS = {"Recall": recall, "NDCG": ndcg}
