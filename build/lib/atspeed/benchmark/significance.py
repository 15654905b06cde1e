"""What users tell for sure: bootstrap intervals of means over users, and of paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import TYPE_CHECKING

from genrec.data.catalogue import Identifier
from genrec.data.dataset import Sample
from genrec.evaluation.metrics import ndcg, recall

if TYPE_CHECKING:
    import pandas as pd

    from atspeed.benchmark.runner import Record

MEASURED = ("accepted levels", "target calls", "Recall@K", "NDCG@K")
RESAMPLES = 2000
CONFIDENCE = 0.95


def by_user(
    records: Sequence[Record], samples: Sequence[Sample], items_of: dict[Identifier, list[int]], tokens: dict[int, str]
) -> pd.DataFrame:
    """`MEASURED` by K, method and request (a user's), means over draws. tokens: id -> identifier token."""
    import pandas as pd

    from atspeed.benchmark.report import items_of_beams

    rows = []
    for record in records:
        ranked, labels = items_of_beams(record.sequences, items_of, tokens), samples[record.request].labels
        measured = (record.accepted, record.target_calls, *(f(ranked, labels, record.width) for f in (recall, ndcg)))
        rows.append((record.width, record.method, record.request, *measured))
    frame = pd.DataFrame(rows, columns=["K", "method", "request", *MEASURED]).astype({"accepted levels": float})
    return frame.groupby(["K", "method", "request"], sort=False).mean().reset_index()


def intervals(values: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean, low and high of each column: the `CONFIDENCE` interval of the mean by percentile bootstrap over the rows,
    which are users; the same resamples for all columns."""
    import numpy as np
    import pandas as pd

    users, random = len(values), np.random.default_rng(seed)
    matrix, means = values.to_numpy(float), []
    for _ in range(RESAMPLES // 100):
        counts = random.multinomial(users, np.full(users, 1 / users), size=100)
        means.append(counts @ matrix / users)
    tails = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), tails, axis=0)
    return pd.DataFrame({"mean": matrix.mean(0), "low": low, "high": high}, index=values.columns)


def differences(values: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Of each two columns the one with the higher mean, the other, and the interval of their paired difference."""
    import pandas as pd

    pairs = [(a, b) for a, b in permutations(values.columns, 2) if values[a].mean() > values[b].mean()]
    paired = pd.DataFrame({pair: values[pair[0]] - values[pair[1]] for pair in pairs})
    if not pairs:
        return pd.DataFrame(columns=["better", "than", "mean", "low", "high"])
    found = intervals(paired, seed)
    return pd.DataFrame(pairs, columns=["better", "than"]).join(found.reset_index(drop=True))
