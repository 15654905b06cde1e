"""Quality and cost of a recommender: on all targets, on those seen in training, and on new items."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from genrec.data.dataset import Sample
from genrec.evaluation.metrics import quality
from specgr.data.codes import NOTHING
from specgr.decoding.ranked_lists import ItemRanker

CUTOFFS = (10, 50)


@dataclass(frozen=True)
class Evaluation:
    """Recall and NDCG by name, see `genrec.evaluation.metrics`, for targets of a kind; nan where there are none.

    `all` is the two others, weighted by their requests: one run serves all three.
    """

    requests: dict[str, int]  # "all", "in-sample", "unseen" -> samples with such a target
    quality: dict[str, dict[str, float]]  # the same -> metrics
    unseen_share: float  # of the items in the lists
    seconds: float  # a request
    rounds: float | None  # a request; None for a recommender that does not draft and verify, like the next
    acceptance: float | None  # accepted / drafted


def evaluate(
    recommender: ItemRanker, samples: Sequence[Sample], seen: Tensor, *, batch_size: int = 128,
    max_history: int = 20, cutoffs: Sequence[int] = CUTOFFS,
) -> Evaluation:  # fmt: skip
    """Recommend for every sample; each has one label, the next item.

    seen: (n_items,) bool, on the device of the recommender. max_history: items that it is shown.
    The first batch is decoded once more before, to warm up. Raises ValueError if there is no sample.
    """
    if not samples:
        raise ValueError("there are no samples to evaluate on")
    batches = list(batches_of(samples, batch_size, max_history, seen.device))
    recommender.recommend(batches[0][1], max(cutoffs))
    ranked, lists, seconds = {}, [], 0.0
    for indices, histories in batches:
        start = time.perf_counter()
        lists.append(recommender.recommend(histories, max(cutoffs)))
        ranked |= dict(zip(indices, lists[-1].items.tolist(), strict=True))  # waits for the device
        seconds += time.perf_counter() - start
    known = seen.tolist()
    kinds = {"all": range(len(samples))}
    for name, wanted in (("in-sample", True), ("unseen", False)):
        kinds[name] = [i for i, sample in enumerate(samples) if known[sample.labels[0]] == wanted]
    each = [quality(ranked[i], sample.labels, cutoffs) for i, sample in enumerate(samples)]
    items = torch.cat([found.items.flatten() for found in lists])
    items = items[items != NOTHING]
    speculative = lists[0].rounds is not None
    return Evaluation(
        {name: len(indices) for name, indices in kinds.items()},
        {name: _mean(each, indices) for name, indices in kinds.items()},
        (~seen[items]).float().mean().item() if len(items) else 0.0,
        seconds / len(samples),
        torch.cat([found.rounds for found in lists]).float().mean().item() if speculative else None,
        sum(int(found.accepted.sum()) for found in lists) / sum(int(found.drafted.sum()) for found in lists)
        if speculative
        else None,
    )


def batches_of(
    samples: Sequence[Sample], batch_size: int, max_history: int, device: torch.device | str
) -> Iterator[tuple[list[int], Tensor]]:
    """Indices of samples, and their histories (b, T): the long ones first, so that little is padded."""
    order = sorted(range(len(samples)), key=lambda i: -min(len(samples[i].history), max_history))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        rows = [torch.tensor(samples[i].history[-max_history:]) for i in indices]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NOTHING)
        yield indices, padded.to(device)


def _mean(each: list[dict[str, float]], indices: Sequence[int]) -> dict[str, float]:
    return {name: fmean(each[i][name] for i in indices) if indices else math.nan for name in each[0]}
