"""Trained drafts side by side: means over seeds, and the paper's figures beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from atspeed.benchmark.methods import BASELINE, GENERATE, RELAXED, STRICT
from atspeed.benchmark.report import PAPER
from genrec.reports.tables import pyplot, to_markdown
from genrec.runtime.files import atomic_path, write_text

if TYPE_CHECKING:
    import pandas as pd

# AtSpeed-R, relaxed, Beauty, over generate on an A5000: read off the paper's figure, as those of AtSpeed-S in `PAPER`.
PAPER_RELAXED = {1: 2.05, 3: 1.94, 5: 1.94, 10: 2.16, 20: 2.47}
MEASURES = ("accepted levels", "target calls", "speed-up", "over gamma 0", "Recall@K", "NDCG@K")
CHANGES = ("Recall change", "NDCG change")  # of relaxed lists against strict ones, which are those of `generate`
PAPER_CLASS = {STRICT: "AtSpeedSModel", RELAXED: "AtSpeedRModel"}  # whose speed-ups the paper's figure shows


def draft_name(model_class: str, seed: int) -> str:
    return f"{model_class} {seed}"


def by_draft(table: pd.DataFrame) -> pd.DataFrame:
    """One row a K, model class, seed and verification. table: of `summarise`, methods as in `draft_methods`."""
    import pandas as pd

    base = table[table["method"] == BASELINE].set_index("K")
    rows = []
    for row in table[~table["method"].isin([GENERATE, BASELINE])].to_dict("records"):
        model_class, seed, verification = row["method"].split()
        changes = [row[f"{name}@K"] - base.loc[row["K"], f"{name}@K"] for name in ("Recall", "NDCG")]
        measures = {name: row[name] for name in MEASURES} | dict(zip(CHANGES, changes, strict=True))
        rows.append(
            {"verification": verification, "model class": model_class, "seed": int(seed), "K": row["K"], **measures}
        )
    return pd.DataFrame(rows)


def over_seeds(drafts: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds; and, where there are several, half of the range of accepted levels and target calls as ±."""
    keys, measures = ["verification", "K", "model class"], [*MEASURES, *CHANGES]
    groups = drafts.groupby(keys, sort=False)
    table = groups[measures].mean()
    if drafts["seed"].nunique() > 1:
        for name in ("accepted levels", "target calls"):
            spread = (groups[name].max() - groups[name].min()) / 2
            table.insert(table.columns.get_loc(name) + 1, f"± {name.split()[1]}", spread)
    return table.reset_index()


def ranking(table: pd.DataFrame) -> str:
    """Model classes by accepted levels under strict verification, the mean over all K, best first."""
    strict = table[table["verification"] == STRICT]
    means = strict.groupby("model class")["accepted levels"].mean().sort_values(ascending=False)
    return ", ".join(f"{name} {value:.2f}" for name, value in means.items())


def save_comparison(folder: Path, drafts: pd.DataFrame, headline: str, verdict: str) -> str:
    """Write comparison.csv (a row a seed), comparison.md (means) and comparison.png; returns what the page says."""
    table = over_seeds(drafts)
    page = [headline, verdict]
    for verification, paper in ((STRICT, PAPER), (RELAXED, PAPER_RELAXED)):
        rows = table[table["verification"] == verification].drop(columns="verification")
        rows["paper"] = [
            paper.get(row["K"]) if row["model class"] == PAPER_CLASS[verification] else None
            for row in rows.to_dict("records")
        ]
        rows["paper"] = rows["paper"].astype(float)
        if verification == STRICT:
            rows = rows.drop(columns=list(CHANGES))
        page.append(f"{verification}; paper: its speed-up over generate on an A5000\n\n{to_markdown(rows).rstrip()}")
    page.append(f"By accepted levels under strict verification, mean over K: {ranking(table)}.")
    text = "\n\n".join(page) + "\n"
    write_text(folder / "comparison.csv", drafts.to_csv(index=False))
    write_text(folder / "comparison.md", text)
    with atomic_path(folder / "comparison.png") as partial:
        plot_comparison(table, headline, partial)
    return text


def plot_comparison(table: pd.DataFrame, headline: str, path: Path) -> None:
    """Accepted levels, and speed-up over `generate` with the paper's, by K: strict above, relaxed below."""
    plt = pyplot()
    widths, classes = sorted(set(table["K"])), list(dict.fromkeys(table["model class"]))
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    for row, (verification, paper) in zip(axes, ((STRICT, PAPER), (RELAXED, PAPER_RELAXED)), strict=True):
        shown = table[table["verification"] == verification].set_index(["model class", "K"])
        for axis, measure in zip(row, ("accepted levels", "speed-up"), strict=True):
            for name in classes:
                axis.plot(range(len(widths)), shown.loc[name, measure].reindex(widths), "o-", markersize=4, label=name)
            axis.set_title(f"{measure}, {verification}")
            axis.set_xticks(range(len(widths)), [f"K = {width}" for width in widths])
            axis.spines[["top", "right"]].set_visible(False)
        known = [paper.get(width, float("nan")) for width in widths]
        row[1].plot(range(len(widths)), known, "k--", label=f"{PAPER_CLASS[verification]}, A5000 (paper)")
        row[1].axhline(1, color="grey", linewidth=0.8, linestyle=":")
        row[1].legend(frameon=False, fontsize=7)
    figure.suptitle(headline, fontsize=8)
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)
