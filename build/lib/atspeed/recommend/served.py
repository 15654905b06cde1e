"""What is known of a recommender without its weights: the items that histories may hold, and those that it may list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path

from atspeed.checkpoints.checkpoint import CATALOGUE, DataSetting
from genrec.data.catalogue import Catalogue, read_stop_list
from genrec.data.item_numbers import read_raw_ids
from genrec.runtime.artefacts import from_facts, read_facts
from genrec.runtime.errors import UserError

Item = int | str  # its number, or its raw id where the recommender knows them


@dataclass(frozen=True)
class ServedCatalogue:
    """The items of a recommender, by number or, if it has them, by raw id."""

    catalogue: Catalogue  # of the items that histories may hold
    items: frozenset[int]  # of these, the ones that lists may hold
    raw_ids: Mapping[str, int] | None = None  # raw id -> item

    @classmethod
    def open(
        cls, target: str | Path, draft: str | Path | None = None, *, index: str | Path | None = None,
        raw_ids: str | Path | None = None, stop_list: str | Path | None = None,
    ) -> tuple[ServedCatalogue, DataSetting]:  # fmt: skip
        """Of the folders of a target and a draft; and the target's setting.

        index: an identifier index whose items are to be listed in place of those that the target was trained for: some
        may have joined, as by `build_index.sh --extend`, and some may have gone. raw_ids: Parquet or CSV of raw_id and
        item. stop_list: a file of items that are not to be listed, see `read_stop_list`.
        Raises UserError for a folder that is not there, not finished, or of another catalogue.
        """
        catalogue, setting = open_served(target, "finetune_llama")
        if draft is not None and open_served(draft, "train")[0].fingerprint != catalogue.fingerprint:
            raise UserError(f"{draft}: was trained for another catalogue than that of {target}")
        items = set(catalogue.identifiers)
        if index is not None:
            catalogue, items = _joined(catalogue, Path(index), target)
        known = None if raw_ids is None else read_raw_ids(Path(raw_ids), catalogue)
        stopped = read_stop_list(Path(stop_list), catalogue) if stop_list else set()
        if not items - stopped:
            raise UserError(f"{stop_list}: names all items that there are to recommend; remove some lines")
        return cls(catalogue, frozenset(items - stopped), known), setting

    @cached_property
    def most(self) -> int:
        """The identifiers that there are to recommend: the largest K."""
        return len({self.catalogue.identifiers[item] for item in self.items})

    @cached_property
    def _names(self) -> dict[int, str]:
        return {number: name for name, number in (self.raw_ids or {}).items()}

    def check_k(self, k: int) -> None:
        """Raises UserError if there are not k identifiers to recommend."""
        if not 1 <= k <= self.most:
            raise UserError(f"k {k}: must be from 1 to {self.most}, the identifiers that there are to recommend")

    def number(self, item: Item) -> int | None:
        """The number of an item; None if the catalogue lacks it."""
        if self.raw_ids is not None:
            return self.raw_ids.get(str(item))
        whole = isinstance(item, Integral) and not isinstance(item, bool)  # numpy's integers too
        return int(item) if whole and item in self.catalogue.identifiers else None

    def unknown(self, items: Iterable[Item]) -> Item | None:
        """The first of the items that the catalogue lacks; None if it has all."""
        return next((item for item in items if self.number(item) is None), None)

    def read(self, where: str, items: Iterable[Item], on_unknown: str) -> list[int]:
        """The numbers of items. on_unknown: "skip" leaves out those that the catalogue lacks; for "error", raises
        UserError that begins with `where` and names the first."""
        numbers = [(item, self.number(item)) for item in items]
        if on_unknown == "error" and (unknown := [item for item, number in numbers if number is None]):
            raise UserError(
                f"{where}: item {unknown[0]!r} is not in the catalogue"
                + (", which has item numbers" if self.raw_ids is None and not isinstance(unknown[0], int) else "")
                + "; leave it out, or pass on_unknown='skip'"
            )
        return [number for _, number in numbers if number is not None]

    def names(self, numbers: Iterable[int]) -> list[Item]:
        """The items as they are shown: raw ids, if there are some."""
        return [*numbers] if self.raw_ids is None else [self._names[number] for number in numbers]


def open_served(path: str | Path, stage: str) -> tuple[Catalogue, DataSetting]:
    """The catalogue that a model was trained for, and its limits. Raises UserError if it is not there or unfinished."""
    facts = read_facts(Path(path), stage, stage)
    return Catalogue.load(Path(path) / CATALOGUE), from_facts(str(path), facts, "setting", DataSetting)


def _joined(trained: Catalogue, path: Path, target: str | Path) -> tuple[Catalogue, set[int]]:
    """A catalogue of the items of both, and the items of the index at `path`."""
    index = Catalogue.load(path)
    if index.levels != trained.levels:
        raise UserError(
            f"{path}: its identifiers have {index.levels} tokens, those that {target} was trained for {trained.levels}"
        )
    for item, identifier in index.identifiers.items():
        was = trained.identifiers.get(item, identifier)
        if was != identifier:
            raise UserError(
                f"{path}: item {item} is {' '.join(identifier)} there, and {' '.join(was)} where {target} was trained; "
                "extend the index of its training with build_index.sh --extend"
            )
    if strange := set(index.tokens) - set(trained.tokens):
        raise UserError(f"{path}: {target} was not trained for identifier token {min(strange)}")
    return Catalogue(trained.identifiers | index.identifiers), set(index.identifiers)
