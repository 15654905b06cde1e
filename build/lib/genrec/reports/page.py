"""A self-contained HTML page about a data set, to look at before training."""

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from genrec.data.dataset import Dataset
from genrec.data.split_report import count_splits
from genrec.data.splits import SPLITS
from genrec.reports import description, figures
from genrec.reports.figures import NAMES

LISTED = 1000  # shared identifiers to list; the rest are only counted
NAMED = 10  # most popular items
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 52rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem }
img { width: 100%; height: auto } .scroll { overflow-x: auto }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .9rem .2rem 0; text-align: right; vertical-align: top; border-bottom: 1px solid #e4e4e4 }
th:first-child, td:first-child { text-align: left } th { font-weight: 600 } summary { cursor: pointer }
@media (max-width: 30rem) { body { margin: 1rem auto; padding: 0 .7rem; font-size: 15px }
  table { font-size: .8rem } th, td { padding: .2rem .5rem .2rem 0 } }
"""


@dataclass(frozen=True)
class Section:
    title: str
    text: str
    svg: bytes | None = None
    alt: str = ""  # the content of the figure in words, for screen readers
    header: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = field(default_factory=list)
    folded: str = ""  # summary line of a collapsed table; empty: not collapsed


def make_page(
    data: Dataset, source: str, times: dict[str, np.ndarray] | None, max_history: int,
    titles: Mapping[int, str] | None = None,
) -> str:  # fmt: skip
    """Returns the page as HTML. source: where the data were read from. times: from `description.read_times`. titles:
    item -> title, of those that are known."""
    titles = titles or {}
    sections = [
        _counts(data),
        _time(data, times),
        _histories(data, max_history),
        _popularity(data),
        _most_popular(data, titles),
        _codes(data),
        _children(data),
        _cold(data),
        _shared(data, titles),
    ]
    title = escape(data.name)
    prints = f"splits {data.splits.fingerprint}, identifiers {data.catalogue.fingerprint}"
    body = "\n".join(map(_html, sections))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"<p>{escape(source)}<br>fingerprints: {prints}</p>\n{body}\n</body>\n</html>\n"
    )


def _counts(data: Dataset) -> Section:
    splits, rows = data.splits, []
    for split in SPLITS:
        lists = [items for items in splits[split].values() if items]
        distinct = len({item for items in lists for item in items})
        rows.append([NAMES[split], sum(map(len, lists)), len(lists), distinct, len(data.samples(split))])
    users = {user for split in SPLITS for user, items in splits[split].items() if items}
    rows.append(["all", sum(row[1] for row in rows), len(users), len(splits.items()), ""])
    only = len(data.catalogue.identifiers.keys() - splits.items())
    text = (
        f"{len(data.catalogue.identifiers):,} items have an identifier; {only:,} of them never occur. Users and items "
        f"of a split are those with an interaction there. An item is chosen {rows[-1][1] / rows[-1][3]:.1f} times, and "
        f"a user chooses {rows[-1][1] / rows[-1][2]:.1f} items, on average."
    )
    return Section("Counts", text, header=["", "interactions", "users", "items", "users to predict for"], rows=rows)


def _time(data: Dataset, times: dict[str, np.ndarray] | None) -> Section:
    title = "Interactions over time, and the cuts"
    if times is None:
        held = "a history and the item that followed it" if data.splits.samples else "the order of a user's items"
        return Section(
            title,
            f"Not known: there is no {description.INTERACTIONS} beside the splits, which hold {held}, and no times. "
            "script/process_data.sh writes it of raw data that have times.",
        )
    rows = [[NAMES[s], *(np.datetime_as_string(t, "s").replace("T", " ") for t in (times[s].min(), times[s].max()))]
            for s in SPLITS]  # fmt: skip
    text = (
        "Time is global: whatever came before the first cut is training, for every user. A burst or a gap beside a cut "
        "means that the model is judged on another time than it learnt."
    )
    alt = "Bars of the interactions by time, in the colours of the splits, with a line at each cut."
    return Section(title, text, figures.draw_times(times), alt, ["split", "first (UTC)", "last (UTC)"], rows)


def _histories(data: Dataset, max_history: int) -> Section:
    found = {split: description.history_lengths(data, split) for split in SPLITS}
    lengths = {split: x for split, x in found.items() if len(x)}
    rows = [
        [NAMES[s], len(x), int(np.median(x)), f"{x.mean():.1f}", int(np.quantile(x, 0.95)), int(x.max()),
         f"{(x > max_history).mean():.1%}"] for s, x in lengths.items()
    ]  # fmt: skip
    text = (
        "Items before the one to be predicted, by sample: a user's last training item, the first validation item, all "
        f"test items. A model reads the last {max_history} (--max_history)."
    )
    alt = "For each split, the share of samples whose history has at least so many items, falling with the length."
    header = ["split", "samples", "median", "mean", "95th percentile", "longest", f"over {max_history}"]
    return Section("History lengths", text, figures.draw_history_lengths(lengths, max_history), alt, header, rows)


def _popularity(data: Dataset) -> Section:
    counts, n_items = description.popularity(data.splits.train), len(data.catalogue.identifiers)
    rows = [
        [f"the most popular {share:.0%}", round(share * n_items),
         f"{description.share_of_most_popular(counts, n_items, share):.1%}"] for share in (0.01, 0.1, 0.5)
    ]  # fmt: skip
    once, never = int((counts == 1).sum()), n_items - len(counts)
    rows += [["chosen once", once, f"{once / counts.sum():.1%}"], ["never in training", never, "0.0%"]]
    text = "Training interactions by item. The steeper, the more a list of the most popular items gets right by itself."
    alt = "Training interactions of an item by its rank, both axes logarithmic, from the most popular item down to one."
    return Section(
        "Popularity", text, figures.draw_popularity(counts), alt, ["items", "how many", "of interactions"], rows
    )


def _most_popular(data: Dataset, titles: Mapping[int, str]) -> Section:
    counts = Counter(item for items in data.splits.train.values() for item in items).most_common(NAMED)
    rows = [[str(item), titles.get(item, ""), count] for item, count in counts]
    text = "The items with the most training interactions" + ("." if titles else "; titles are not known here.")
    return Section("Most popular items", text, header=["item", "title", "interactions"], rows=rows)


def _codes(data: Dataset) -> Section:
    counts = description.code_use(data.catalogue)
    rows = [[level, len(use), f"{description.perplexity(use):.1f}",
             f"{description.perplexity(use) / len(use):.0%}", int(use[0]), int(use[-1])]
            for level, use in enumerate(counts)]  # fmt: skip
    text = (
        "How evenly a level's codes are used: perplexity is the number of codes that, used equally often, would be as "
        "hard to guess. Few codes at a level, or a perplexity far below their number, is a codebook that collapsed."
    )
    header = ["level", "codes", "perplexity", "of the codes", "items of the most used", "of the least"]
    alt = "For each level, the number of items a code names by its rank, from the most used code to the least."
    return Section("Codes by level", text, figures.draw_code_use(counts), alt, header, rows)


def _children(data: Dataset) -> Section:
    counts, train, rows = description.children(data.catalogue), data.splits.train, []
    for length, found in enumerate(counts):
        below = [description.items_below(data.catalogue, length, chosen) for chosen in (None, train)]
        rows.append([length, len(found), f"{found.mean():.2f}", int(found[0]), f"{(found == 1).mean():.0%}",
                     *(f"{mean:,.1f}" for mean in below)])  # fmt: skip
    text = (
        "The trie of all identifiers: how many codes may follow a prefix. Where most prefixes have one child, the trie "
        "alone can draft the rest of the identifier, and a draft model has nothing to guess."
    )
    alt = "For prefixes of each length, the share that has at least so many children, falling with their number."
    header = ["codes in the prefix", "prefixes", "children, mean", "most", "with one child", "items below, mean",
              "… by training interaction"]  # fmt: skip
    return Section("Children by prefix", text, figures.draw_children(counts), alt, header, rows)


def _cold(data: Dataset) -> Section:
    counts = count_splits(data.splits)
    found, shares = {split: counts[split] for split in SPLITS[1:]}, {}
    for split, one in found.items():
        shares[split] = {"items": one.cold_items / one.items,
                         "interactions": one.cold_interactions / one.interactions}  # fmt: skip
    rows = [[NAMES[s], one.items, one.cold_items, f"{shares[s]['items']:.1%}", one.interactions,
             one.cold_interactions, f"{shares[s]['interactions']:.1%}"] for s, one in found.items()]  # fmt: skip
    text = (
        "Items of validation and test that no training interaction has. Their interactions count in Recall and NDCG, "
        "and no model that learns from the training split alone has seen them."
    )
    alt = "Bars, for each split, of the shares of items and interactions that the table gives."
    header = ["split", "items", "cold", "share", "interactions", "of cold items", "share"]
    return Section("Cold items", text, figures.draw_cold_items(shares), alt, header, rows)


def _shared(data: Dataset, titles: Mapping[int, str]) -> Section:
    shared = description.shared_identifiers(data.catalogue)
    items = sum(map(len, shared.values()))
    text = (
        f"{items:,} of {len(data.catalogue.identifiers):,} items share {len(shared):,} identifiers. They are "
        "recommended together: the model cannot tell them apart."
    )
    if not shared:
        return Section("Shared identifiers", "Every item has an identifier of its own.")
    rows = [
        ["".join(tokens), ", ".join(f"{item} {titles.get(item, '')}".strip() for item in same)]
        for tokens, same in list(shared.items())[:LISTED]
    ]
    folded = f"The identifiers and their items{f' (the first {LISTED:,})' if len(shared) > LISTED else ''}"
    return Section("Shared identifiers", text, header=["identifier", "items"], rows=rows, folded=folded)


def _html(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>", f"<p>{escape(section.text)}</p>"]
    if section.svg:
        picture = base64.b64encode(section.svg).decode()
        parts.append(f'<img alt="{escape(section.alt)}" src="data:image/svg+xml;base64,{picture}">')
    if section.rows:
        table = f'<div class="scroll">{_table(section.header, section.rows)}</div>'
        folded = f"<details><summary>{escape(section.folded)}</summary>{table}</details>"
        parts.append(folded if section.folded else table)
    return "\n".join(parts)


def _table(header: Iterable[str], rows: Iterable[Sequence[object]]) -> str:
    cells = ["".join(f"<td>{_cell(value)}</td>" for value in row) for row in rows]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else escape(str(value))
