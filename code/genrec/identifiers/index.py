"""Codes as identifiers, and what a person wants to know of them."""

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

PROBES = 256  # old items that are quantised again before an index is extended


def identifiers_of(codes: Tensor, first: int = 0) -> dict[int, Identifier]:
    """codes (n, L) of items `first`, `first` + 1, … -> `<a_47>`, `<b_103>` … as in the released indices."""
    rows = enumerate(codes.tolist(), first)
    return {item: tuple(f"<{chr(97 + level)}_{code}>" for level, code in enumerate(row)) for item, row in rows}


def codes_of(path: Path, catalogue: Catalogue, settings: RQVAESettings) -> Tensor:
    """The codes (n, L), with an identification digit (n, L + 1), of a catalogue of the items 0 … n - 1: the inverse.

    Raises UserError if it is not what codebooks of these settings give.
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
    """The nearest codes (n, L) of embeddings (n, d), made distinct as `RQVAE.resolve` does.

    rows (m,) long: items whose codes come first, as if there were no others, which then get theirs as new items do.
    None: all at once.
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
    """What became of items. Errors are shares of the embeddings' variance, rates shares of the items."""

    items: int
    error: float  # of the nearest codes
    error_resolved: float  # of the codes in the index
    collision_rate: float  # (items - distinct identifiers) / items, of the nearest codes
    collision_rate_resolved: float
    moved: int  # items that got another code on the last level
    sharing: int  # items that still share an identifier
    digits: int | None  # items of the same codes that the identification digit tells apart, at most; None: no digit
    used: list[str]  # codes that occur of those there are, by level
    perplexity: list[float]  # by level: as many codes, if all occurred equally often

    @classmethod
    def of(cls, model: RQVAE, embeddings: Tensor, nearest: Tensor, codes: Tensor) -> "Report":
        """embeddings (n, d); nearest (n, L), codes (n, L or L + 1): before and after resolution."""
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
    """Write report.json, sharing.json and without_text.json to `output`. Returns what to show of them."""
    looks = {"chosen": asdict(fitted.best), "looks": [asdict(look) for look in fitted.looks]}
    write_json(output / "report.json", asdict(report) | looks)
    write_json(output / "without_text.json", [{"item": i, "raw_id": source.names[i]} for i in source.without])
    return [*report.lines(), *_write_sharing(output / "sharing.json", catalogue, source.names)]


def _write_sharing(path: Path, catalogue: Catalogue, names: list[str]) -> list[str]:
    """Write every identifier that several items share, with their numbers and raw ids; the first ten as lines."""
    listed = [
        {"identifier": list(tokens), "items": items, "raw_id": [names[item] for item in items]}
        for tokens, items in catalogue.items_of.items()
        if len(items) > 1
    ]
    write_json(path, listed)
    shown = [f"{''.join(g['identifier'])} is shared by {', '.join(map(str, g['items'][:10]))}" for g in listed[:10]]
    return shown + ([f"all {len(listed)} shared identifiers: {path}"] if len(listed) > 10 else [])


def extend_index(index: Path, model: RQVAE, source: VectorSource) -> list[str]:
    """Give identifiers to the items of the source that the index lacks, and leave the others as they are.

    Writes the index, and what became of the new items to its folder. Returns what to show.
    Raises UserError if the vectors are not of the kind that the model was fitted to.
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
    """Old items (n, d) must get the first codes (n, L) that they have, or the vectors are of another encoder."""
    if vectors.shape[1] != model.width:
        raise UserError(f"{index}: was made of vectors of {model.width} numbers, these have {vectors.shape[1]}; use "
                        "the same encoder")  # fmt: skip
    same = (model.codes(vectors)[:, 0] == old[:, 0]).float().mean().item() if len(old) else 1.0
    if same < 0.5:
        raise UserError(f"{index}: only {same:.0%} of {len(old)} old items get the first code that they have; these "
                        "vectors are of another encoder, or in another order")  # fmt: skip
