"""Curves of speculative decoding over one parameter: draft width, drafted levels, draft size, share of alignment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atspeed.benchmark.methods import BASELINE
from atspeed.benchmark.report import PARTS, timings
from genrec.reports.tables import pyplot, to_markdown, write_csv
from genrec.runtime.files import atomic_path, write_text

if TYPE_CHECKING:
    import pandas as pd

    from atspeed.benchmark.runner import Record

LABELS = {
    "alpha": "α, share of the alignment loss", "draft_beam_size": "N, draft width", "gamma": "γ, levels drafted",
    "layers": "layers of the draft",
}  # fmt: skip
PARAMETERS = tuple(LABELS)


def point(value: float) -> str:
    """The method's name of a value."""
    return f"speculative {value:g}"


def sweep_table(records: Sequence[Record], values: Sequence[float], levels: int) -> pd.DataFrame:
    """One row a K and value, and gamma 0's with no value; "level i" is the share of requests whose first round accepts
    at least i of the drafted levels. levels: L."""
    import pandas as pd

    table = timings(records)
    named = {point(value): value for value in values}
    table = table[table["method"].isin([BASELINE, *named])]
    table = table.assign(value=table["method"].map(named))
    first = pd.DataFrame(
        [(r.width, r.method, *(r.rounds[0] >= i for i in range(1, levels))) for r in records if r.method in named],
        columns=["K", "method", *(f"level {i}" for i in range(1, levels))],
    )
    return table.merge(first.groupby(["K", "method"]).mean().reset_index(), how="left", on=["K", "method"])


def save_sweep(folder: Path, parameter: str, table: pd.DataFrame, headline: str, verdict: str) -> str:
    """Write sweep.csv, sweep.md and sweep.png; returns what the page says. table: of `sweep_table`."""
    shown = ["K", "value", "accepted levels", "target calls", "ms", "speed-up", "over gamma 0"]
    shown += [f"{part} ms" for part in PARTS if f"{part} ms" in table.columns]
    shown += [name for name in table.columns if name.startswith("level ")]
    said = table.assign(value=[BASELINE if value != value else f"{value:g}" for value in table["value"]])
    text = f"{headline}\n\n{verdict}\n\n{to_markdown(said, shown)}"
    write_csv(folder / "sweep.csv", table)
    write_text(folder / "sweep.md", text)
    with atomic_path(folder / "sweep.png") as partial:
        plot_sweep(parameter, table, headline, partial)
    return text


def plot_sweep(parameter: str, table: pd.DataFrame, headline: str, path: Path) -> None:
    """Accepted levels and speed-ups by value; at the largest K, where the time goes, and acceptance by level."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 4, figsize=(17, 4), layout="constrained")
    accepted, speed, split, by_level = axes
    swept = table[table["value"].notna()]
    for width, rows in swept.groupby("K"):
        accepted.plot(rows["value"], rows["accepted levels"], "o-", markersize=4, label=f"K = {width}")
        speed.plot(rows["value"], rows["speed-up"], "o-", markersize=4, label=f"K = {width}")
    speed.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    for axis, title in ((accepted, "accepted levels a round"), (speed, "speed-up over generate")):
        axis.set_title(title)
        axis.set_xlabel(LABELS[parameter])
    last = table[table["K"] == table["K"].max()]
    names = [BASELINE if value != value else f"{value:g}" for value in last["value"]]
    bottom, rest = 0.0, last["ms"].to_numpy()
    for part in [f"{part} ms" for part in PARTS if f"{part} ms" in last.columns]:
        seconds = last[part].fillna(0).to_numpy()
        split.bar(names, seconds, bottom=bottom, label=part.removesuffix(" ms"))
        bottom, rest = bottom + seconds, rest - seconds
    split.bar(names, rest.clip(min=0), bottom=bottom, label="other")
    split.set_title(f"ms a request, K = {table['K'].max()}")
    split.set_xlabel(LABELS[parameter])
    columns = [name for name in last.columns if name.startswith("level ")]
    for name, row in zip(names, last[columns].to_numpy(), strict=True):
        if name != BASELINE:
            by_level.plot(range(1, len(columns) + 1), row, "o-", markersize=4, label=name)
    by_level.set_title(f"first round accepts the level, K = {table['K'].max()}")
    by_level.set_xlabel("level")
    by_level.set_xticks(range(1, len(columns) + 1))
    by_level.set_ylim(0, 1.02)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=7)
    figure.suptitle(headline, fontsize=8, wrap=True)
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)
