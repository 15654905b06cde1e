"""What a person waits, and requests a second, over all batch sizes of a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from atspeed.benchmark.methods import GENERATE
from atspeed.benchmark.report import TIMES
from genrec.reports.tables import csv_name, pyplot, to_markdown, write_csv
from genrec.runtime.files import atomic_path, write_text

if TYPE_CHECKING:
    import pandas as pd

WAITS = (
    "method", "K", "batch", "requests/s", "p50 ms", "p99 ms", "speed-up", "over best generate", "over gamma 0",
    "target calls", "accepted levels",
)  # fmt: skip


def waits(folder: Path, dtype: str) -> pd.DataFrame:
    """One row a K, batch size and method of a benchmark's folder: what a person waits, who waits for the whole batch,
    and requests a second, also over those of `generate` at the batch size that suits it best."""
    import pandas as pd

    names, tables = {csv_name(name): name for name in TIMES}, []
    for path in folder.glob(f"batch-*-{dtype}.csv"):
        batch = int(path.name.split("-")[1])
        table = pd.read_csv(path).rename(columns=names)
        tables.append(table.assign(batch=batch, **{"p50 ms": batch * table["ms"], "p99 ms": batch * table["p99 ms"]}))
    table = pd.concat(tables).sort_values(["K", "batch"], kind="stable")
    best = table[table["method"] == GENERATE].groupby("K")["requests/s"].max()
    table["over best generate"] = table["requests/s"] / table["K"].map(best)
    return table[list(WAITS)].reset_index(drop=True)


def save_waits(folder: Path, table: pd.DataFrame, headline: str, name: str) -> None:
    """Write NAME.csv, NAME.md and NAME.png. table: of `waits`."""
    write_csv(folder / f"{name}.csv", table)
    write_text(folder / f"{name}.md", f"{headline}\n\n{to_markdown(table)}")
    with atomic_path(folder / f"{name}.png") as partial:
        plot_waits(table, headline, partial)


def plot_waits(table: pd.DataFrame, headline: str, path: Path) -> None:
    """What a person waits by K, at the smallest batch size; and requests a second by batch size, at each K."""
    plt = pyplot()
    widths, sizes = sorted(set(table["K"])), sorted(set(table["batch"]))
    methods = list(dict.fromkeys(table["method"]))
    shown = widths if len(sizes) > 1 else []
    figure, axes = plt.subplots(
        1, 1 + len(shown), figsize=(5.5 + 3 * len(shown), 4), layout="constrained", squeeze=False
    )
    for i, method in enumerate(methods):
        rows, style = table[table["method"] == method], {"marker": "o", "markersize": 4, "color": f"C{i}"}
        alone = rows[rows["batch"] == sizes[0]].set_index("K").reindex(widths)
        axes[0, 0].plot(range(len(widths)), alone["p50 ms"], label=method, **style)
        for axis, width in zip(axes[0, 1:], shown, strict=True):
            of_width = rows[rows["K"] == width].set_index("batch").reindex(sizes)
            axis.plot(range(len(sizes)), of_width["requests/s"], **style)
            axis.set_xticks(range(len(sizes)), sizes)
            axis.set(title=f"requests a second, K = {width}", xlabel="batch", ylim=(0, None))
    axes[0, 0].set_xticks(range(len(widths)), [f"K = {width}" for width in widths])
    axes[0, 0].set(title=f"what a person waits, ms, batch {sizes[0]}", yscale="log")
    axes[0, 0].legend(frameon=False, fontsize=8)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(headline, fontsize=7, wrap=True)
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)
