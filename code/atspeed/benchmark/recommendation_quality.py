"""Recommendation quality: the target and simple baselines under one evaluation."""

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from atspeed.benchmark.report import items_of_beams
from atspeed.benchmark.significance import intervals
from atspeed.prompts import encode_prompts, left_pad
from atspeed.template import LC_REC, PromptTemplate
from beamsd import Prefix, Trie, beam_search
from genrec.data.catalogue import Catalogue
from genrec.data.dataset import Dataset, Sample
from genrec.evaluation.baselines import (
    CO_OCCURRENCE,
    POPULARITY,
    SASREC,
    UP_TO_DATE,
    Baseline,
    CoOccurrence,
    Popularity,
)
from genrec.evaluation.metrics import METRICS, quality
from genrec.evaluation.sasrec import train_sasrec
from genrec.reports.tables import pyplot, to_markdown, write_csv
from genrec.runtime.files import atomic_path, write_text
from genrec.runtime.progress import progress_bar

TARGET = "target"
ERROR = " s.e."


@dataclass
class ItemList:
    """What a method recommends for one request."""

    method: str
    request: int  # index of the sample
    items: list[int]  # best first


class Generative:
    """The items that a fine-tuned model generates by beam search."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue, cutoff: int,
        batch_size: int, template: PromptTemplate = LC_REC,
    ):  # fmt: skip
        """cutoff: tokens of prompt, identifier and EOS, as in training. batch_size: prompts decoded at once."""
        self.model, self.tokenizer, self.catalogue = model, tokenizer, catalogue
        self.cutoff, self.batch_size, self.template = cutoff, batch_size, template
        self.trie = Trie(catalogue.token_ids(tokenizer)).to(model.device)
        self.tokens = dict(enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))))

    @torch.inference_mode()
    def recommend(
        self, histories: Sequence[Sequence[int]], seen: Sequence[Set[int]], k: int, process: int, processes: int,
        done: Set[tuple[str, int]],
    ) -> Iterator[list[ItemList]]:  # fmt: skip
        """The items of the k best beams, best first: k items, or more if they share identifiers; batch by batch.

        seen: items that a history's list may not hold. done: (method, request) of what is left out. The batches are
        the same for any number of processes, which take turns on them, and after any interruption, so a list does not
        depend on either.
        """
        samples = [Sample(user=row, history=tuple(history), labels=()) for row, history in enumerate(histories)]
        prompts = encode_prompts(self.tokenizer, self.catalogue, samples, self.cutoff, self.template)
        prefix = Prefix.of(prompts)
        by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))  # little padding
        batches = [by_length[i : i + self.batch_size] for i in range(0, len(by_length), self.batch_size)]
        left = [rows for rows in batches[process::processes] if not {(TARGET, row) for row in rows} <= done]
        bar = progress_bar(sum(map(len, left)), "beam search", "user")
        for rows in left:
            ids, mask = (tensor.to(self.model.device) for tensor in left_pad([prompts[row] for row in rows]))
            blocked = self._blocked([seen[row] for row in rows])
            result = beam_search(self.model, ids, mask, trie=self.trie, width=k, prefix=prefix, blocked=blocked)
            batch = []
            for row, beams, found in zip(rows, result.sequences.tolist(), result.found.tolist(), strict=True):
                items = items_of_beams(beams[:found], self.catalogue.items_of, self.tokens)
                batch.append(ItemList(TARGET, row, [item for item in items if item not in seen[row]]))
            yield batch
            bar.update(len(rows))
        bar.close()

    def _blocked(self, seen: Sequence[Set[int]]) -> Tensor | None:
        """What no prompt of a batch may be given: the identifiers all of whose items were seen."""
        known = self.catalogue
        gone = [(row, each) for row, items in enumerate(seen) for each in known.wholly_within(items)]
        if not gone:
            return None
        ids = [self.tokenizer.convert_tokens_to_ids(list(identifier)) for _, identifier in gone]
        return self.trie.blocked(torch.tensor(ids), torch.tensor([row for row, _ in gone]), len(seen))


def make_baseline(
    name: str, data: Dataset, split: str, *, max_history: int, seed: int = 0, device: torch.device | str = "cpu"
) -> Baseline:
    """A baseline by its name, to be judged on `split`. It learns from the training split, as the target does; what is
    up to date also counts what the histories of `split` end with."""
    train, valid, items = data.splits.train, data.splits.valid, data.catalogue.identifiers
    known = {user: seen + valid.get(user, []) for user, seen in train.items()} if split == "test" else train
    make: dict[str, Callable[[], Baseline]] = {
        POPULARITY: lambda: Popularity(train, items),
        CO_OCCURRENCE: lambda: CoOccurrence(train, items),
        UP_TO_DATE: lambda: CoOccurrence(known, items),
        SASREC: lambda: train_sasrec(
            train,
            data.samples("valid", max_history=max_history),
            items,
            max_history=max_history,
            seed=seed,
            device=device,
        ),
    }
    return make[name]()


def recommend_unseen(
    baseline: Baseline, histories: Sequence[Sequence[int]], seen: Sequence[Set[int]], k: int
) -> list[list[int]]:
    """The baseline's k best items for each history without those seen, of as many as the catalogue has."""
    ranked = baseline.recommend(histories, k + max(map(len, seen), default=0))
    return [[item for item in items if item not in gone][:k] for items, gone in zip(ranked, seen, strict=True)]


def judge(lists: dict[str, list[list[int]]], samples: Sequence[Sample], cutoffs: Sequence[int]) -> pd.DataFrame:
    """One row a method: Recall and NDCG by cutoff, means over the users, and their standard errors.

    lists: method -> a ranked list for every sample.
    """
    rows = []
    for method, ranked in lists.items():
        each = _by_user(ranked, samples, cutoffs)
        rows.append({"method": method, **each.mean(), **each.sem().add_suffix(ERROR), "users": len(samples)})
    return pd.DataFrame(rows)


def target_over_baselines(
    lists: dict[str, list[list[int]]], samples: Sequence[Sample], cutoffs: Sequence[int]
) -> pd.DataFrame:
    """How much better the target is than each baseline, by metric: the mean over users, low and high of its 95 %
    interval by paired bootstrap. No row where there is no target."""
    tables = []
    for method, ranked in lists.items():
        if method != TARGET and TARGET in lists:
            better = _by_user(lists[TARGET], samples, cutoffs) - _by_user(ranked, samples, cutoffs)
            tables.append(intervals(better).rename_axis("metric").reset_index().assign(over=method))
    columns = ["over", "metric", "mean", "low", "high"]
    return pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)


def _by_user(ranked: list[list[int]], samples: Sequence[Sample], cutoffs: Sequence[int]) -> pd.DataFrame:
    return pd.DataFrame([quality(r, s.labels, cutoffs) for r, s in zip(ranked, samples, strict=True)])


def save_quality(folder: Path, table: pd.DataFrame, over: pd.DataFrame, headline: str) -> str:
    """Write quality.csv, quality.md (without the errors), quality.png and, where there is a target, over.csv; returns
    the Markdown tables. over: see `target_over_baselines`."""
    shown = to_markdown(table, [name for name in table.columns if not name.endswith(ERROR) and name != "users"])
    write_csv(folder / "quality.csv", table)
    if len(over):
        write_csv(folder / "over.csv", over)
        said = over.assign(difference=[f"{m:+.4f} ({a:+.4f} to {b:+.4f})" for m, a, b in over.iloc[:, 2:].to_numpy()])
        wide = said.pivot(index="metric", columns="over", values="difference")
        wide = wide.loc[over["metric"].unique(), over["over"].unique()].reset_index()
        shown += f"\nThe target over each, with 95 % intervals (paired bootstrap over users):\n\n{to_markdown(wide)}"
    write_text(folder / "quality.md", f"{headline}\n\n{shown}")
    with atomic_path(folder / "quality.png") as partial:
        plot_quality(table, headline, partial)
    return shown


def plot_quality(table: pd.DataFrame, headline: str, path: Path) -> None:
    """Recall and NDCG by cutoff, one bar a method; the lines are two standard errors each way."""
    plt = pyplot()
    figure, axes = plt.subplots(1, len(METRICS), figsize=(10, 3.8), layout="constrained")
    for axis, metric in zip(axes, METRICS, strict=True):
        names = [name for name in table.columns if name.startswith(f"{metric}@") and not name.endswith(ERROR)]
        for i, (_, row) in enumerate(table.iterrows()):
            places = [x + (i - (len(table) - 1) / 2) * 0.8 / len(table) for x in range(len(names))]
            errors = [2 * row[name + ERROR] for name in names]
            axis.bar(places, row[names], 0.76 / len(table), yerr=errors, error_kw={"lw": 0.8}, label=row["method"])
        axis.set_xticks(range(len(names)), names)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(headline, fontsize=8, wrap=True)
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)
