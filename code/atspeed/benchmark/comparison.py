"""Trained drafts side by side: means over users and seeds, their intervals, and the paper's figures beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from atspeed.benchmark.methods import BASELINE, COUPLED, GENERATE, RELAXED, STRICT
from atspeed.benchmark.report import PAPER
from atspeed.benchmark.significance import MEASURED, differences, intervals
from genrec.reports.tables import pyplot, to_markdown, write_csv
from genrec.runtime.files import atomic_path, write_text

if TYPE_CHECKING:
    import pandas as pd

# AtSpeed-R, relaxed, Beauty, over generate on an A5000: read off the paper's figure, as those of AtSpeed-S in `PAPER`.
PAPER_RELAXED = {1: 2.05, 3: 1.94, 5: 1.94, 10: 2.16, 20: 2.47}
PAPERS: dict[str, dict[int, float]] = {STRICT: PAPER, RELAXED: PAPER_RELAXED, COUPLED: {}}
CHANGES = ("Recall change", "NDCG change")  # of lists against those of `generate`, for the same users
TIMES = ("speed-up", "over gamma 0")
KEYS = ["verification", "K", "draft"]
PAPER_CLASS = {STRICT: "AtSpeedSModel", RELAXED: "AtSpeedRModel"}  # whose speed-ups the paper's figure shows


def draft_name(label: str, seed: int) -> str:
    """label: without a space, the model class and what it differs in from its default."""
    return f"{label} {seed}"


def of_drafts(users: pd.DataFrame) -> pd.DataFrame:
    """What each draft does for each user: `MEASURED` and `CHANGES` by target, draft, seed, verification, K, request.

    users: of `by_user`, methods as in `draft_methods`, with a column that names the target.
    """
    named = users["method"].str.split(expand=True).reindex(columns=range(3))
    rows = users.assign(draft=named[0], seed=named[1], verification=named[2])
    of_user = ["target", "K", "request"]
    base = users[users["method"] == BASELINE].set_index(of_user)[["Recall@K", "NDCG@K"]]
    rows = rows[~rows["method"].isin([GENERATE, BASELINE])].astype({"seed": int})
    own = base.reindex(rows.set_index(of_user).index).to_numpy()
    return rows.assign(**dict(zip(CHANGES, (rows[["Recall@K", "NDCG@K"]] - own).to_numpy().T, strict=True)))


def by_draft(drafts: pd.DataFrame, times: pd.DataFrame) -> pd.DataFrame:
    """One row a verification, K, draft, target and seed: means over users. drafts: of `of_drafts`. times: a row a
    target, K and method, with `TIMES`."""
    keys = [*KEYS, "target", "seed"]
    table = drafts.groupby(keys, sort=False)[[*MEASURED, *CHANGES]].mean().reset_index()
    method = table["draft"] + " " + table["seed"].astype(str) + " " + table["verification"]
    wanted = table.assign(method=method).set_index(["target", "K", "method"]).index
    return table.join(times.set_index(["target", "K", "method"])[list(TIMES)].reindex(wanted).reset_index(drop=True))


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Means over targets and seeds; and, where there are several, the standard deviation of accepted levels and target
    calls over them as ±. table: of `by_draft`."""
    measures = [*MEASURED[:2], *TIMES, *MEASURED[2:], *CHANGES]
    groups = table.groupby(KEYS, sort=False)
    means = groups[measures].mean()
    if (groups.size() > 1).any():
        for name in ("accepted levels", "target calls"):
            means.insert(means.columns.get_loc(name) + 1, f"± {name.split()[1]}", groups[name].std())
    return means.reset_index()


def confidence(drafts: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Intervals over users, of what is averaged over targets and seeds, of accepted levels and `CHANGES`; and paired
    differences in accepted levels, by verification, K and, as K = "mean", all of them. drafts: of `of_drafts`.

    The differences also say in how many of the pairs of target and seed they have that sign.
    """
    import pandas as pd

    means, better = [], []
    for verification, rows in drafts.groupby("verification", sort=False):
        for width, mine in [*rows.groupby("K", sort=False), ("mean", rows)]:
            for name in ("accepted levels", *CHANGES):
                values = mine.pivot_table(name, "request", "draft", sort=False)
                means.append(intervals(values).assign(measure=name, verification=verification, K=width))
            found = differences(mine.pivot_table("accepted levels", "request", "draft", sort=False))
            of_seed = mine.pivot_table("accepted levels", ["target", "seed"], "draft")
            found["of seeds"] = [f"{(of_seed[a] > of_seed[b]).sum()} of {len(of_seed)}" for a, b in
                                 zip(found["better"], found["than"], strict=True)]  # fmt: skip
            better.append(found.assign(verification=verification, K=width))
    return pd.concat(means).rename_axis("draft").reset_index(), pd.concat(better, ignore_index=True)


def ranking(table: pd.DataFrame) -> str:
    """Drafts by accepted levels under strict verification, the mean over all K, best first."""
    strict = table[table["verification"] == STRICT]
    means = strict.groupby("draft")["accepted levels"].mean().sort_values(ascending=False)
    return ", ".join(f"{name} {value:.2f}" for name, value in means.items())


def save_comparison(folder: Path, users: pd.DataFrame, times: pd.DataFrame, headline: str, verdict: str) -> str:
    """Write users.parquet, times.parquet, comparison.csv (a row a seed), comparison.md (means), intervals.csv,
    differences.csv and comparison.png; returns what the page says. users, times: see `of_drafts`, `by_draft`."""
    drafts = of_drafts(users)
    by_seed = by_draft(drafts, times)
    table, (spread, better) = over_seeds(by_seed), confidence(drafts)
    page = [headline, verdict]
    for verification in dict.fromkeys(table["verification"]):
        rows, paper = table[table["verification"] == verification].drop(columns="verification"), PAPERS[verification]
        shown = ("accepted levels",) if verification == STRICT else ("accepted levels", *CHANGES)
        for name in shown:
            found = spread[(spread["verification"] == verification) & (spread["measure"] == name)]
            found = found.set_index(["K", "draft"]).reindex(rows.set_index(["K", "draft"]).index)
            decimals = 2 if name == "accepted levels" else 4
            said = [f"{low:.{decimals}f} to {high:.{decimals}f}" for low, high in zip(found["low"], found["high"],
                                                                                     strict=True)]  # fmt: skip
            rows.insert(rows.columns.get_loc(name) + 1, f"95 %, {name}", said)
        rows["paper"] = [
            paper.get(row["K"]) if row["draft"] == PAPER_CLASS.get(verification) else None
            for row in rows.to_dict("records")
        ]
        rows["paper"] = rows["paper"].astype(float)
        if verification == STRICT:
            rows = rows.drop(columns=list(CHANGES))
        count = drafts[drafts["verification"] == verification]["request"].nunique()
        if rows["paper"].isna().all():
            rows = rows.drop(columns="paper")
        known = "; paper: its speed-up over generate on an A5000" if "paper" in rows else ""
        page.append(f"{verification}, {count} users{known}\n\n{to_markdown(rows).rstrip()}")
        chosen = better[(better["verification"] == verification) & (better["K"] == "mean")].reset_index(drop=True)
        said = [f"{low:.3f} to {high:.3f}" for low, high in zip(chosen["low"], chosen["high"], strict=True)]
        chosen = chosen.assign(**{"difference": chosen["mean"], "95 %": said})
        page.append(
            f"Who accepts more levels, {verification}, mean over all K; paired bootstrap over users, and in how many "
            "pairs of target and seed\n\n"
            f"{to_markdown(chosen, ['better', 'than', 'difference', '95 %', 'of seeds']).rstrip()}"
        )
    page.append(f"By accepted levels under strict verification, mean over K: {ranking(table)}.")
    text = "\n\n".join(page) + "\n"
    with atomic_path(folder / "users.parquet") as partial:
        users.to_parquet(partial, index=False)
    with atomic_path(folder / "times.parquet") as partial:
        times.to_parquet(partial, index=False)
    for name, frame in (("comparison", by_seed), ("intervals", spread), ("differences", better)):
        write_csv(folder / f"{name}.csv", frame)
    write_text(folder / "comparison.md", text)
    with atomic_path(folder / "comparison.png") as partial:
        plot_comparison(table, headline, partial)
    return text


def plot_comparison(table: pd.DataFrame, headline: str, path: Path) -> None:
    """Accepted levels, and speed-up over `generate` with the paper's, by K: a row a verification."""
    plt = pyplot()
    widths, drafts = sorted(set(table["K"])), list(dict.fromkeys(table["draft"]))
    verifications = list(dict.fromkeys(table["verification"]))
    figure, axes = plt.subplots(
        len(verifications), 2, figsize=(11, 3.5 * len(verifications)), layout="constrained", squeeze=False
    )
    for row, verification in zip(axes, verifications, strict=True):
        shown = table[table["verification"] == verification].set_index(["draft", "K"])
        for axis, measure in zip(row, ("accepted levels", "speed-up"), strict=True):
            for name in drafts:
                values = shown[measure].reindex([(name, width) for width in widths])
                axis.plot(range(len(widths)), values, "o-", markersize=4, label=name)
            axis.set_title(f"{measure}, {verification}")
            axis.set_xticks(range(len(widths)), [f"K = {width}" for width in widths])
            axis.spines[["top", "right"]].set_visible(False)
        known = [PAPERS[verification].get(width, float("nan")) for width in widths]
        if verification in PAPER_CLASS:
            row[1].plot(range(len(widths)), known, "k--", label=f"{PAPER_CLASS[verification]}, A5000 (paper)")
        row[1].axhline(1, color="grey", linewidth=0.8, linestyle=":")
        row[1].legend(frameon=False, fontsize=7)
    figure.suptitle(headline, fontsize=8, wrap=True)
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)
