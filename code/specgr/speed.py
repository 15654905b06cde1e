"""How many requests a second a recommender answers, one at a time and many at once.

    python -m specgr.speed --config code/specgr/configs/beauty.yaml --batch_sizes 1,8,64 --k 10,20,50

First every batch size must give the lists of batch size 1, then, one list size after another, all are timed in turn,
several times over, so that a busy machine hits all of them. Trained models if they are there, else random weights of
the same shape, which the headline says: these accept nothing at the published threshold, so every request takes all
rounds.
Writes results.csv, results.md and facts.json to {output_dir}/{dataset}/speed, or to --results FOLDER.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from genrec.reports.tables import to_markdown, write_csv
from genrec.runtime.artefacts import FACTS, hold, new_folder
from genrec.runtime.errors import UserError
from genrec.runtime.files import check_new, write_text
from genrec.runtime.machine import machine_name
from specgr.configuration.config import Config, run_configured
from specgr.configuration.names import AUX, CONSTRAINED, PLUS, SPECULATIVE, check_methods
from specgr.configuration.plans import OF_TEXTS, describe, settings_of, stages_of
from specgr.run import check as check_requests
from specgr.run import fingerprints, requests_of
from specgr.train import open_bench

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from specgr.decoding.ranked_lists import ItemRanker, RankedLists
    from specgr.training.stages import Workspace

TOLERANCE = 1e-4  # of scores: rounding depends on the shape of a batch
TIES = 0.01  # of the lists may hold other items, with the same scores
Batches = dict[int, list[tuple[list[int], "Tensor"]]]  # by size: numbers of requests, and their histories (b, T)


@dataclass(frozen=True)
class Flags:
    batch_sizes: tuple[int, ...] = (1, 8, 64)
    methods: tuple[str, ...] = ()  # of `names.NEEDS`; none: both SpecGR, without texts one, and TIGER constrained
    k: tuple[int, ...] = (50,)  # items a list
    draft_size: int | None = None  # of SpecGR with any drafter, instead of the configuration's; so the next two
    num_beams: int | None = None
    threshold: float | None = None
    eval_mode: str = "test"  # or valid: the split that the requests are drawn from
    max_eval_steps: float = 256  # requests; up to 1: this share of them
    repetitions: int = 5
    results: str | None = None
    overwrite: bool = False

    @property
    def batch_size(self) -> int:
        return min(self.batch_sizes)


def main(config: Config, flags: Flags) -> None:
    check(flags)
    folder = Path(flags.results or Path(config.output_dir) / config.dataset / "speed")
    check_new(folder, flags.overwrite, "--results")
    hold(folder)
    names = flags.methods or tuple(name for name in (AUX, PLUS, CONSTRAINED) if name != AUX or config.embeddings)
    changes = {key: getattr(flags, key) for key in ("draft_size", "num_beams", "threshold")}
    settings = {name: settings_of(config, name, **changes) for name in names if name in SPECULATIVE}
    bench = open_bench(config)

    import pandas as pd

    from specgr.evaluation.evaluation import batches_of
    from specgr.evaluation.recommenders import make

    samples = requests_of(bench, flags.eval_mode, flags.max_eval_steps).samples()
    batches = {
        size: list(batches_of(samples, size, config.max_history, bench.seen.device)) for size in flags.batch_sizes
    }
    with trained_or_random(bench, names) as (ready, weights):
        recommenders = {name: make(ready, name, settings.get(name)) for name in names}
    sizes = dict.fromkeys(flags.k)
    facts = [compare(name, recommender, batches, k) for k in sizes for name, recommender in recommenders.items()]
    print("every batch size gives the lists of batch size 1; timed now", flush=True)
    timed = [time_in_turn(recommenders, batches, k, flags.repetitions, len(samples)) for k in sizes]
    table = pd.concat(timed).merge(pd.DataFrame(facts), on=["method", "K"])
    machine = machine_name(bench.accelerator.device)
    headline = (
        f"{config.dataset}, {flags.eval_mode}: {len(samples)} requests, K {','.join(map(str, flags.k))}, {weights}"
        f"{describe(settings)}; {machine}; median of {flags.repetitions} repetitions, lowest and highest beside it"
    )
    of = {
        "machine": machine, "data": bench.data.fingerprint, "weights": weights,
        "settings": {name: asdict(one) for name, one in settings.items()},
    }  # fmt: skip
    with new_folder(folder, "specgr.speed", asdict(flags), **of) as partial:
        write_csv(partial / "results.csv", table)
        write_text(partial / "results.md", f"{headline}\n\n{to_markdown(table)}")
    print(f"\n{headline}\n\n{to_markdown(table)}\nwritten to {folder}")


def check(flags: Flags) -> None:
    """Raises UserError that names the flag."""
    if flags.batch_sizes[:1] != (1,):
        raise UserError(
            f"--batch_sizes {','.join(map(str, flags.batch_sizes))}: starts with 1, which the others are compared with"
        )
    check_methods(flags.methods)
    check_requests(flags)


@contextmanager
def trained_or_random(bench: Workspace, names: tuple[str, ...]) -> Iterator[tuple[Workspace, str]]:
    """The workspace with the models of these methods, all trained or else all random, and a text that says which."""
    stages = stages_of(bench.config, names)
    absent = [stage for stage in stages if not (bench.folder(stage) / FACTS).is_file()]
    if not absent:
        fingerprints(bench, names)
        yield bench, "trained"
        return
    with TemporaryDirectory() as folder:
        random = replace(bench, config=replace(bench.config, output_dir=folder))
        for stage in stages:
            save_random(random, stage)
        yield random, f"random weights of seed {bench.config.seed}, since {', '.join(absent)} is not trained"


def save_random(bench: Workspace, stage: str) -> None:
    """What a training leaves, but for its facts, with random weights."""
    import torch

    from specgr.decoding.item_drafters import item_embeddings
    from specgr.networks.unisrec import UniSRec, UniSRecSettings
    from specgr.training.stages import ITEMS, MODEL, save_items

    torch.manual_seed(bench.config.seed)
    folder = bench.folder(stage)
    folder.mkdir(parents=True)
    if stage in OF_TEXTS:
        of_texts = {"unisrec": bench.config.unisrec, "sasrec_t": bench.config.sasrec_t}[stage]
        shape = UniSRecSettings(bench.texts.shape[1], bench.config.max_history, **asdict(of_texts))
        UniSRec(shape).save(folder / MODEL)
    else:
        tiger = bench.new_tiger().eval()
        tiger.save(folder / MODEL)
        save_items(item_embeddings(tiger, bench.data.codes), bench.data.codes, folder / ITEMS)


def compare(name: str, recommender: ItemRanker, batches: Batches, k: int) -> dict[str, object]:
    """Columns of the table for a method: rounds and acceptance of batch size 1, and at most how many lists of another
    size hold other items. Raises RuntimeError if a list differs by more than a tie, or too many do."""
    import torch

    alone, most = answer(recommender, batches[1], k), 0
    for size, parts in batches.items():
        together = answer(recommender, parts, k)
        other = (alone.items != together.items).any(-1)
        wrong = ~torch.isclose(alone.scores, together.scores, atol=TOLERANCE, rtol=TOLERANCE).all(-1)
        if wrong.any() or other.float().mean() > TIES:
            raise RuntimeError(
                f"{name}, batch size {size}: {int(other.sum())} of {len(other)} lists hold other items than with batch "
                f"size 1, {int(wrong.sum())} have other scores (request {int((wrong | other).nonzero()[0])})"
            )
        most = max(most, int(other.sum()))
    rounds = acceptance = None
    if alone.rounds is not None:
        rounds = alone.rounds.double().mean().item()
        acceptance = (alone.accepted.sum() / alone.drafted.sum()).item()
    return {"method": name, "K": k, "rounds": rounds, "acceptance": acceptance, "ties": most}


def answer(recommender: ItemRanker, batches: list[tuple[list[int], Tensor]], k: int) -> RankedLists:
    """The lists of all requests, in the order of their numbers, on the CPU."""
    import torch

    from specgr.decoding.ranked_lists import RankedLists

    lists = [recommender.recommend(histories, k) for _, histories in batches]
    order = torch.tensor([index for indices, _ in batches for index in indices]).argsort()
    columns = ([getattr(found, field.name) for found in lists] for field in fields(RankedLists))
    return RankedLists(*(None if column[0] is None else torch.cat(column).cpu()[order] for column in columns))


def time_in_turn(
    recommenders: dict[str, ItemRanker], batches: Batches, k: int, repetitions: int, requests: int
) -> pd.DataFrame:
    """Requests a second by method and batch size, after `compare` has warmed up everything. A ratio is that to batch
    size 1 in the same repetition."""
    import pandas as pd

    rates: dict[tuple[str, int], list[float]] = {(name, size): [] for name in recommenders for size in batches}
    for _ in range(repetitions):
        for (name, size), found in rates.items():
            start = time.perf_counter()
            for _, histories in batches[size]:
                recommenders[name].recommend(histories, k).items.cpu()  # waits for the device
            found.append(requests / (time.perf_counter() - start))
    rows = []
    for (name, size), found in rates.items():
        ratios = [rate / one for rate, one in zip(found, rates[name, 1], strict=True)]
        rows.append({
            "method": name, "K": k, "batch": size, "requests/s": median(found), "lowest": min(found),
            "highest": max(found), "times batch 1": median(ratios), "at least": min(ratios), "at most": max(ratios),
        })  # fmt: skip
    return pd.DataFrame(rows)


if __name__ == "__main__":
    run_configured(main, Flags)
