"""The figures of the data set page, as SVG. No line is distinguished by its colour alone."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, PercentFormatter

from genrec.data.splits import SPLITS

COLOURS = {"train": "#0072B2", "valid": "#E69F00", "test": "#009E73"}  # by Okabe and Ito, for any colour vision
NAMES = {"train": "training", "valid": "validation", "test": "test"}
DASHES = ("-", "--", "-.", ":")
BINS = 80  # of the timeline


def draw_times(times: dict[str, np.ndarray]) -> bytes:
    """Draws the interactions over time and the two cuts. times: split -> (n,) datetime64[s]."""
    figure, axis = _axes()
    first, last = min(t.min() for t in times.values()), max(t.max() for t in times.values())
    edges = first + np.linspace(0, max(1, (last - first).astype(int)), BINS + 1).astype("timedelta64[s]")
    days = (edges[1] - edges[0]) / np.timedelta64(1, "D")
    below = np.zeros(BINS)
    for split in SPLITS:
        counts = np.histogram(times[split].astype(np.int64), edges.astype(np.int64))[0]
        axis.stairs(below + counts, edges, baseline=below, fill=True, color=COLOURS[split], label=NAMES[split])
        below += counts
    for split in SPLITS[1:]:
        cut = times[split].min()
        axis.axvline(cut, color="black", linewidth=1, linestyle="--")
        text = f"{NAMES[split]} from {np.datetime_as_string(cut, 'D')}"
        above = 1.02 if split == "valid" else 1.09
        axis.text(cut, above, text, transform=axis.get_xaxis_transform(), ha="right")
    axis.set(xlabel="time (UTC)", ylabel=f"interactions per {days:.3g} days", ylim=(0, None))
    axis.yaxis.set_major_formatter(FuncFormatter(_number))
    axis.legend(frameon=False)
    return _svg(figure)


def draw_history_lengths(lengths: dict[str, np.ndarray], max_history: int) -> bytes:
    """Draws the share of samples with at least a given history length. lengths: split -> (n_samples,)."""
    figure, axis = _axes()
    for (split, found), dashes in zip(lengths.items(), DASHES, strict=False):
        _at_least(axis, found, NAMES[split], color=COLOURS[split], linestyle=dashes)
    axis.axvline(max_history, color="black", linewidth=1, linestyle=":")
    axis.text(max_history, 1.02, f"the last {max_history} are read", transform=axis.get_xaxis_transform(), ha="center")
    axis.set(xlabel="items in the history", ylabel="samples with at least so many", ylim=(0, 1))
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.legend(frameon=False, loc="lower left")
    return _svg(figure)


def draw_popularity(counts: np.ndarray) -> bytes:
    """Draws the interactions by rank on logarithmic axes. counts: (n_items,), descending."""
    figure, axis = _axes()
    # Only the ranks where the count changes are drawn; the thousands of points between add nothing to a step line.
    last = np.append(np.flatnonzero(np.diff(counts)), len(counts) - 1)
    ranks, values = np.append(1, last + 1), np.append(counts[0], counts[last])
    axis.plot(ranks, values, drawstyle="steps-pre", color=COLOURS["train"])
    axis.set(xscale="log", yscale="log", xlabel="rank of the item", ylabel="training interactions of the item")
    axis.set_ylim(bottom=0.8)
    _plain(axis)
    return _svg(figure)


def draw_code_use(counts: Sequence[np.ndarray]) -> bytes:
    """Draws the items per code by rank, one line per level. counts: for every level (n_codes,), descending."""
    figure, axis = _axes()
    for level, (use, style) in enumerate(zip(counts, _styles(len(counts)), strict=True)):
        axis.plot(range(1, len(use) + 1), use, marker="o" if len(use) < 9 else None, markersize=4,
                  label=f"level {level}: {len(use)} codes", **style)  # fmt: skip
    axis.set(yscale="log", xlabel="rank of the code at its level", ylabel="items whose identifier has it")
    axis.set_ylim(bottom=0.8)
    axis.yaxis.set_major_formatter(FuncFormatter(_number))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False)
    return _svg(figure)


def draw_children(counts: Sequence[np.ndarray]) -> bytes:
    """Draws the share of prefixes with at least a given number of children, one line per length. counts: by length."""
    figure, axis = _axes()
    for length, (found, style) in enumerate(zip(counts, _styles(len(counts)), strict=True)):
        name = "the root" if length == 0 else f"prefixes of {length} code{'s' * (length > 1)}: {len(found):,}"
        _at_least(axis, found, name, **style)
    axis.set(xlabel="children of the prefix", ylabel="prefixes with at least so many", ylim=(0, 1.02))
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    return _svg(figure)


def draw_cold_items(shares: dict[str, dict[str, float]]) -> bytes:
    """Draws the share of cold items and interactions by split. shares: split -> what is counted -> share."""
    figure, axis = _axes(height=1.9)
    rows = [(split, what, share) for split, found in shares.items() for what, share in found.items()]
    names = [f"{NAMES[split]} {what}" for split, what, _ in rows]
    bars = axis.barh(names, [share for *_, share in rows], color=[COLOURS[split] for split, *_ in rows], height=0.7)
    axis.bar_label(bars, [f"{share:.1%}" for *_, share in rows], padding=4)
    axis.invert_yaxis()
    axis.set(xlabel="share whose item is not in training", xlim=(0, max(0.05, 1.15 * max(share for *_, share in rows))))
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return _svg(figure)


def _axes(height: float = 3.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.6, height), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _at_least(axis: Axes, values: np.ndarray, name: str, **style: object) -> None:
    """Draws a step line of the share of `values` that are at least x, over a logarithmic x."""
    x, counts = np.unique(values, return_counts=True)
    share = counts[::-1].cumsum()[::-1] / len(values)
    x, share = np.concatenate([[min(1, x[0])], x, x[-1:]]), np.concatenate([[1], share, [0]])
    axis.plot(x, share, drawstyle="steps-pre", marker=".", markersize=4, markevery=slice(1, -1), label=name, **style)
    axis.set_xscale("log", subs=[])
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    _plain(axis)


def _number(value: float, _: int | None = None) -> str:
    return f"{value:,.0f}"


def _plain(axis: Axes) -> None:
    """Formats numbers on logarithmic axes as 1,000 rather than 10³."""
    for scale, ticks in ((axis.get_xscale(), axis.xaxis), (axis.get_yscale(), axis.yaxis)):
        if scale == "log":
            ticks.set_major_formatter(FuncFormatter(_number))


def _styles(n: int) -> list[dict[str, object]]:
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.7, n))
    return [{"color": c, "linestyle": DASHES[i % len(DASHES)], "linewidth": 1.8} for i, c in enumerate(colours)]


def _svg(figure: Figure) -> bytes:
    """Renders a figure as SVG, with the same bytes for the same figure."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "genrec"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
