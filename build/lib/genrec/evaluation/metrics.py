"""Recall and NDCG of ranked lists, against all items that the user chose next."""

import math
from collections.abc import Iterable, Sequence


def recall(ranked: list[int], labels: Iterable[int], k: int) -> float:
    """Returns the share of `labels` among the first `k` of `ranked`: hits / labels."""
    wanted = set(labels)
    return len(wanted.intersection(ranked[:k])) / len(wanted)


def ndcg(ranked: list[int], labels: Iterable[int], k: int) -> float:
    """Returns DCG with binary relevance, the sum of 1 / log2(rank + 1) over hits, as a share of the best possible."""
    wanted = set(labels)
    gain = sum(1 / math.log2(rank + 2) for rank, item in enumerate(ranked[:k]) if item in wanted)
    return gain / sum(1 / math.log2(rank + 2) for rank in range(min(k, len(wanted))))


def quality(ranked: list[int], labels: Iterable[int], cutoffs: Sequence[int]) -> dict[str, float]:
    """Returns Recall@k and NDCG@k by name, for every cutoff k."""
    return {f"{name}@{k}": metric(ranked, labels, k) for name, metric in METRICS.items() for k in cutoffs}


METRICS = {"Recall": recall, "NDCG": ndcg}
