"""Identifier indices: conversion from and to codes, extension by new items, and reports."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from genrec.data.catalogue import Catalogue, Identifier
from genrec.identifiers.quantise import collision_rate, identification_digits, shared
from genrec.identifiers.rqvae import RQVAE, RQVAESettings
from genrec.identifiers.rqvae_training import Fit
from genrec.identifiers.sources import VectorSource
from genrec.runtime.errors import UserError
from genrec.runtime.files import write_json

PROBES = 256  # old items quantised again, to check the vectors before an index is extended


def identifiers_of(codes: Tensor, first: int = 0) -> dict[int, Identifier]:
    """Converts codes (n, L) of items `first`, `first` + 1, … to `<a_47>`, `<b_103>` … as in the released indices."""
    rows = enumerate(codes.tolist(), first)
    return {item: tuple(f"<{chr(97 + level)}_{code}>" for level, code in enumerate(row)) for item, row in rows}


def codes_of(path: Path, catalogue: Catalogue, settings: RQVAESettings) -> Tensor:
    """Converts a catalogue of items 0 … n - 1 to codes (n, L), with an identification digit (n, L + 1).

    The inverse of `identifiers_of`. Raises UserError if codebooks of these settings cannot give the catalogue.
    """
    digit = settings.distinct == "digit"
    sizes = (*settings.codebooks, *[len(catalogue.identifiers)] * digit)
    if sorted(catalogue.identifiers) != list(range(len(catalogue.identifiers))):
        raise UserError(f"{path}: the items are not numbered 0 to {len(catalogue.identifiers) - 1}")
    rows = []
    for item, identifier in sorted(catalogue.identifiers.items()):
        found = [re.fullmatch(rf"<{chr(97 + level)}_(\d+)>", token) for level, token in enumerate(identifier)]
        row = [int(match[1]) if match else -1 for match in found]
        if len(row) != len(sizes) or not all(0 <= code < size for code, size in zip(row, sizes, strict=True)):
            raise UserError(f"{path}: item {item}: {' '.join(identifier)} is not an identifier of these codebooks")
        rows.append(row)
    codes = torch.tensor(rows)
    in_order = codes[codes[:, -1].argsort(stable=True)]
    if digit and not torch.equal(identification_digits(in_order[:, :-1]), in_order[:, -1]):
        raise UserError(f"{path}: the last level does not count the items of the same other codes from 0; make it anew")
    return codes


def resolve_in_turn(model: RQVAE, embeddings: Tensor, nearest: Tensor, rows: Tensor | None) -> Tensor:
    """Makes the nearest codes (n, L) of embeddings (n, d) distinct, as `RQVAE.resolve` does.

    rows (m,) long: items to resolve first, on their own; the others are then resolved as new items. None: all at once.
    """
    if rows is None:
        return model.resolve(embeddings, nearest)
    others = torch.ones(len(nearest), dtype=torch.bool)
    others[rows] = False
    first = model.resolve(embeddings[rows], nearest[rows])
    codes = first.new_empty(len(nearest), first.shape[1])
    codes[rows], codes[others] = first, model.resolve(embeddings[others], nearest[others], first)
    return codes


@dataclass(frozen=True)
class Report:
    """Statistics of quantised items. Errors are shares of the embeddings' variance, rates shares of the items."""

    items: int
    error: float  # of the nearest codes
    error_resolved: float  # of the codes in the index
    collision_rate: float  # (items - distinct identifiers) / items, of the nearest codes
    collision_rate_resolved: float
    moved: int  # items whose last code was changed
    sharing: int  # items that still share an identifier
    digits: int | None  # most items with the same codes, separated by the identification digit; None: no digit
    used: list[str]  # used and available codes, by level
    perplexity: list[float]  # of the codes, by level; the number of codes if all are equally frequent

    @classmethod
    def of(cls, model: RQVAE, embeddings: Tensor, nearest: Tensor, codes: Tensor) -> "Report":
        """Computes the report. embeddings (n, d); nearest (n, L), codes (n, L or L + 1): before, after resolution."""
        sizes = model.settings.codebooks
        counts = [torch.bincount(codes[:, level], minlength=size) for level, size in enumerate(sizes)]
        return cls(
            len(codes), model.error(embeddings, nearest), model.error(embeddings, codes), collision_rate(nearest),
            collision_rate(codes), int((nearest != codes[:, : len(sizes)]).any(-1).sum()), int(shared(codes).sum()),
            int(codes[:, -1].max()) + 1 if codes.shape[1] > len(sizes) else None,
            [f"{int((c > 0).sum())} of {len(c)}" for c in counts],
            [round(torch.special.entr(c / c.sum()).sum().exp().item(), 1) for c in counts],
        )  # fmt: skip

    def lines(self) -> list[str]:
        after = (
            f"the identification digit tells apart up to {self.digits} items of the same codes" if self.digits else
            f"after {self.moved} of {self.items} items got another last code: {self.collision_rate_resolved:.2%}, "
            f"{self.sharing} items still share an identifier"
        )  # fmt: skip
        return [
            f"reconstruction error: {self.error:.4f} of the variance, {self.error_resolved:.4f} after resolution",
            *(f"level {level}: {used} codes used, perplexity {perplexity}"
              for level, (used, perplexity) in enumerate(zip(self.used, self.perplexity, strict=True))),
            f"collision rate: {self.collision_rate:.2%}; {after}",
        ]  # fmt: skip


def write_reports(output: Path, report: Report, catalogue: Catalogue, source: VectorSource, fitted: Fit) -> list[str]:
    """Writes report.json, sharing.json and without_text.json to `output`, and returns the lines to show."""
    looks = {"chosen": asdict(fitted.best), "looks": [asdict(look) for look in fitted.looks]}
    write_json(output / "report.json", asdict(report) | looks)
    write_json(output / "without_text.json", [{"item": i, "raw_id": source.names[i]} for i in source.without])
    return [*report.lines(), *_write_sharing(output / "sharing.json", catalogue, source.names)]


def _write_sharing(path: Path, catalogue: Catalogue, names: list[str]) -> list[str]:
    """Writes the identifiers that items share, with item numbers and raw ids; returns the first ten as lines."""
    listed = [
        {"identifier": list(tokens), "items": items, "raw_id": [names[item] for item in items]}
        for tokens, items in catalogue.items_of.items()
        if len(items) > 1
    ]
    write_json(path, listed)
    shown = [f"{''.join(g['identifier'])} is shared by {', '.join(map(str, g['items'][:10]))}" for g in listed[:10]]
    return shown + ([f"all {len(listed)} shared identifiers: {path}"] if len(listed) > 10 else [])


def extend_index(index: Path, model: RQVAE, source: VectorSource) -> list[str]:
    """Gives identifiers to the items of the source that the index lacks, and leaves the others unchanged.

    Writes the index and, to its folder, a report on the new items. Returns the lines to show.
    Raises UserError if the vectors are not like those that the model was fitted to.
    """
    catalogue = Catalogue.load(index)
    old = codes_of(index, catalogue, model.settings)
    new = range(len(old), len(source.names))
    if not new:
        return [f"{index}: all {len(source.names)} items have an identifier, nothing to do"]
    known = sorted(set(range(len(old))) - set(source.without))
    probes = known[:: max(1, len(known) // PROBES)]
    vectors = source.some([*probes, *new])
    _check_vectors(index, model, vectors[: len(probes)], old[probes])
    vectors = vectors[len(probes) :]
    nearest = model.codes(vectors)
    codes = model.resolve(vectors, nearest, old)
    report = Report.of(model, vectors, nearest, codes)
    extended = Catalogue(catalogue.identifiers | identifiers_of(codes, first=len(old)))
    folder = index.with_suffix("")
    unseen = sorted(set(extended.tokens) - set(catalogue.tokens))
    about = {"first": new[0], "last": new[-1], "source": source.about, "catalogue": extended.fingerprint}
    about |= {"unseen_tokens": unseen}
    write_json(folder / f"extended-{new[0]}-{new[-1]}.json", asdict(report) | about)
    shown = [*report.lines(), *_write_sharing(folder / "sharing.json", extended, source.names)]
    extended.save(index)
    return [
        f"new items: {new[0]} to {new[-1]}",
        *shown,
        f"{len(unseen)} tokens no old item has, which a target fine-tuned before does not know {' '.join(unseen[:10])}",
        f"{index}: the other {len(old)} items are as they were",
    ]


def _check_vectors(index: Path, model: RQVAE, vectors: Tensor, old: Tensor) -> None:
    """Raises UserError if most old items (n, d) get other first codes than in `old` (n, L), as with another encoder."""
    if vectors.shape[1] != model.width:
        raise UserError(f"{index}: was made of vectors of {model.width} numbers, these have {vectors.shape[1]}; use "
                        "the same encoder")  # fmt: skip
    same = (model.codes(vectors)[:, 0] == old[:, 0]).float().mean().item() if len(old) else 1.0
    if same < 0.5:
        raise UserError(f"{index}: only {same:.0%} of {len(old)} old items get the first code that they have; these "
                        "vectors are of another encoder, or in another order")  # fmt: skip
