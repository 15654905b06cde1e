"""Tables, files and plots of measured records."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atspeed.benchmark.methods import BASELINE, GENERATE
from genrec.data.catalogue import Identifier
from genrec.data.dataset import Sample
from genrec.data.item_numbers import RawNames
from genrec.evaluation.metrics import ndcg, quality, recall
from genrec.reports.tables import pyplot, to_markdown, write_csv
from genrec.runtime.files import atomic_path, sha256, write_text

if TYPE_CHECKING:
    import pandas as pd

    from atspeed.benchmark.runner import Record

CUTOFFS = (1, 5, 10, 20)
PAPER = {1: 2.33, 3: 1.97, 5: 1.84, 10: 1.87, 20: 1.82}  # AtSpeed-S, strict, Beauty: read off its figure
SCORE_DIGITS = 4  # after the point: what float32 is sure of
PARTS = ("draft", "target", "verify")
SHORT = ("method", "K", "ms", "speed-up", "over gamma 0", "target calls", "accepted levels", "Recall@K", "NDCG@K")


def summarise(
    records: Sequence[Record], samples: Sequence[Sample], items_of: dict[Identifier, list[int]], tokens: dict[int, str]
) -> pd.DataFrame:
    """One row a method and K. Times are medians, which one slow moment of the machine does not move.

    tokens: id -> identifier token.
    """
    import pandas as pd

    rows = []
    for record in records:
        ranked = items_of_beams(record.sequences, items_of, tokens)
        labels = samples[record.request].labels
        scores = quality(ranked, labels, [k for k in CUTOFFS if k <= record.width])
        scores |= {"Recall@K": recall(ranked, labels, record.width), "NDCG@K": ndcg(ranked, labels, record.width)}
        rows.append({"method": record.method, "K": record.width, **scores})
    means = pd.DataFrame(rows).groupby(["K", "method"], sort=False).mean()
    table = timings(records).set_index(["K", "method"]).join(means).rename(columns={"requests": "users"})
    rest = ["p95 ms", *(f"{part} ms" for part in PARTS), *(f"{m}@{k}" for m in ("Recall", "NDCG") for k in CUTOFFS)]
    ordered = [*SHORT[2:], *(name for name in rest if name in table.columns), "ties", "users"]
    table = table[ordered].reset_index()
    return table[["method", *(name for name in table.columns if name != "method")]].astype({"ties": int})


def timings(records: Sequence[Record]) -> pd.DataFrame:
    """One row a K and method: medians, 95th and 99th percentiles of times a request, and means of counts.

    Speed-ups are medians of the ratios request by request, since methods take turns on each: what slows the machine for
    a while slows both sides.
    """
    import pandas as pd

    rows = [
        {
            "request": record.request, "method": record.method, "K": record.width, "ms": record.seconds * 1e3,
            "target calls": record.target_calls, "accepted levels": record.accepted,
            "target tokens": record.target_tokens, "draft tokens": record.draft_tokens, "ties": record.tie,
            "requests": 1, **{f"{part} ms": seconds * 1e3 for part, seconds in record.parts.items()},
        }
        for record in records
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    of_request = frame.set_index(["K", "request"])
    for name, base in (("speed-up", GENERATE), ("over gamma 0", BASELINE)):
        baseline = of_request.loc[of_request["method"] == base, "ms"]
        frame[name] = baseline.reindex(of_request.index).to_numpy() / frame["ms"]
    how = dict.fromkeys(frame.columns.drop(["K", "method", "request"]), "mean")
    groups = frame.groupby(["K", "method"], sort=False)
    how |= dict.fromkeys(("ms", "speed-up", "over gamma 0"), "median") | {"ties": "sum", "requests": "sum"}
    high = {f"p{share} ms": groups["ms"].quantile(share / 100) for share in (95, 99)}
    return groups.agg(how).assign(**high).reset_index()


def items_of_beams(
    sequences: Sequence[Sequence[int]], items_of: dict[Identifier, list[int]], tokens: dict[int, str]
) -> list[int]:
    """The items that beams name, best first; all of them, in ascending order, where several share an identifier."""
    return [item for sequence in sequences for item in items_of[tuple(tokens[t] for t in sequence)]]


def recommendations(
    records: Sequence[Record], samples: Sequence[Sample], items_of: dict[Identifier, list[int]], tokens: dict[int, str],
    names: RawNames | None = None,
) -> str:  # fmt: skip
    """One JSON line a record, in the order of the samples: the user, the items, best first, and the log-probabilities
    of their identifiers, null in a record without; with names, raw ids too."""
    lines = []
    for record in sorted(records, key=lambda record: record.request):
        user, items = samples[record.request].user, items_of_beams(record.sequences, items_of, tokens)
        line: dict[str, object] = {"user": user, "items": items, "scores": scores_of_items(record, items_of, tokens)}
        if names is not None:
            line |= {"raw_user": names.users.get(user), "raw_items": [names.items.get(item) for item in items]}
        lines.append(json.dumps(line))
    return "\n".join(lines) + "\n"


def scores_of_items(
    record: Record, items_of: dict[Identifier, list[int]], tokens: dict[int, str]
) -> list[float] | None:
    """The score of each item of `items_of_beams`; items that share an identifier share its score. None without scores,
    as in a run that an older version has begun."""
    if record.scores is None:
        return None
    return [
        round(score, SCORE_DIGITS)
        for sequence, score in zip(record.sequences, record.scores, strict=True)
        for _ in items_of_beams([sequence], items_of, tokens)
    ]


def verdict(records: Sequence[Record], exact: bool) -> str:
    """How many lists are the same for all methods; `exact` where equality is promised (float32)."""
    lists = defaultdict(set)
    for record in records:
        lists[record.width, record.request].add(tuple(map(tuple, record.sequences)))
    differ = {key for key, found in lists.items() if len(found) > 1}
    same = len(lists) - len(differ)
    if not exact:
        return f"{same} of {len(lists)} lists identical for all methods (not promised in this precision)"
    unknown = {(record.width, record.request) for record in records if not record.settled}
    said = f"{same} of {len(lists)} lists identical for all methods; {len(differ - unknown)} differ by a tie in float32"
    if unknown:
        said += f"; {len(unknown)} differ, in items or scores, and need more memory to be decoded in float64"
    return said


def results_name(widths: Sequence[int], draft: str, batch_sizes: Sequence[int], *others: str) -> str:
    """The name of a results folder, made of the settings that tell it from others of the same models.

    draft: of width and gamma; others: precision, split, a choice of users, …; each empty where there is none.
    """
    parts = (f"K{'-'.join(map(str, widths))}", draft, f"batch{'-'.join(map(str, batch_sizes))}", *others)
    return "_".join(part for part in parts if part)


def users_name(max_users: int | None, seed: int) -> str:
    """The part of a results name that identifies a choice of users."""
    return f"{max_users}users-seed{seed}" if max_users else ""


def short(value: object) -> str:
    """A hash of eight characters, for what is too long for a name."""
    return sha256(repr(value).encode())[:8]


def save_report(folder: Path, table: pd.DataFrame, headline: str) -> None:
    """Write results.csv, results.md (what matters first, then the time split and all cutoffs) and results.png."""
    write_csv(folder / "results.csv", table)
    rest = ["method", "K", *(name for name in table.columns if name not in SHORT and name not in ("users", "ties"))]
    write_text(folder / "results.md", f"{headline}\n\n{to_markdown(table, SHORT)}\n{to_markdown(table, rest)}")
    with atomic_path(folder / "results.png") as partial:
        plot_results(table, headline, partial)


TIMES = (
    "method", "K", "ms", "p95 ms", "p99 ms", "requests/s", "speed-up", "over gamma 0", "target calls",
    "accepted levels", "target tokens", "draft tokens", "draft ms", "target ms", "verify ms", "peak MB",
)  # fmt: skip


def save_benchmark(folder: Path, name: str, table: pd.DataFrame, headline: str, notes: str) -> None:
    """Write NAME.csv, NAME.md and NAME.png. table: of `timings`, one batch size and precision."""
    write_csv(folder / f"{name}.csv", table)
    columns = [column for column in TIMES if column in table.columns]
    write_text(folder / f"{name}.md", f"{headline}\n\n{to_markdown(table, columns)}\n{notes}\n")
    with atomic_path(folder / f"{name}.png") as partial:
        plot_benchmark(table, headline, partial)


def plot_benchmark(table: pd.DataFrame, headline: str, path: Path) -> None:
    """Speed-up over `generate` by K, beside the paper's; target calls by K; where the time goes at the largest K, for
    all but `generate`, whose parts are not timed."""
    import pandas as pd

    plt = pyplot()
    widths, methods = list(dict.fromkeys(table["K"])), list(dict.fromkeys(table["method"]))
    places, last = (
        range(len(widths)),
        table[(table["K"] == max(table["K"])) & (table["method"] != GENERATE)].set_index("method"),
    )
    figure, (speed, calls, split) = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    for i, method in enumerate(methods):
        rows = table[table["method"] == method].set_index("K").reindex(widths)
        style = {"marker": "o", "markersize": 4, "linewidth": 1.4, "label": method, "color": f"C{i}"}
        if method != GENERATE:
            speed.plot(places, rows["speed-up"], **style)
        calls.plot(places, rows["target calls"], **style)
    paper = [PAPER.get(width) for width in widths]
    if any(paper):
        speed.plot(
            places, [v or float("nan") for v in paper], "k--", linewidth=1, label="AtSpeed-S, strict, A5000 (paper)"
        )
    speed.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    for axis, title in ((speed, "speed-up over generate"), (calls, "target calls a request")):
        axis.set_xticks(places, [f"K = {width}" for width in widths])
        axis.set_title(title)
    left = pd.Series(0.0, index=last.index)
    shown = [f"{part} ms" for part in (*PARTS, "round") if f"{part} ms" in table.columns]
    rest = last["ms"] - last[shown].fillna(0).sum(axis=1)
    for part, values in [*((p, last[p].fillna(0)) for p in shown), ("other ms", rest.clip(lower=0))]:
        split.barh(last.index, values, left=left, label=part.removesuffix(" ms"))
        left += values
    split.invert_yaxis()
    split.set_title(f"where the time goes, K = {max(table['K'])}, ms a request")
    for axis in (speed, calls, split):
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=7)
    figure.suptitle(headline, fontsize=8, wrap=True)
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)


def plot_results(table: pd.DataFrame, headline: str, path: Path) -> None:
    """Speed-up over `generate`, and target calls, by K."""
    plt = pyplot()
    widths, methods = list(dict.fromkeys(table["K"])), list(dict.fromkeys(table["method"]))
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axis, column, title in zip(
        axes, ("speed-up", "target calls"), ("speed-up over generate", "target calls a request"), strict=True
    ):
        for i, method in enumerate(methods):
            values = table[table["method"] == method].set_index("K")[column].reindex(widths)
            places = [x + (i - (len(methods) - 1) / 2) * 0.26 for x in range(len(widths))]
            bars = axis.bar(places, values, 0.24, label=method)
            axis.bar_label(bars, fmt="%.1f", fontsize=7)
        axis.set_xticks(range(len(widths)), [f"K = {width}" for width in widths])
        axis.set_title(title)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].axhline(1, color="grey", linewidth=0.8, linestyle=":")
    axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(headline, fontsize=8, wrap=True)
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)
