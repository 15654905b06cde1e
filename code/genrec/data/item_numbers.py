"""Raw ids of items and their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from genrec.data.catalogue import Catalogue
from genrec.runtime.errors import UserError

RAW, NUMBER = "raw_id", "item"  # columns, as process_data.sh writes them to items.parquet


@dataclass(frozen=True)
class RawNames:
    """Raw ids by number."""

    users: Mapping[int, str]
    items: Mapping[int, str]

    @classmethod
    def of(cls, folder: Path) -> RawNames | None:
        """Those of a data set, from users.parquet and items.parquet; None if it does not have them."""
        import pyarrow.parquet as pq

        paths = {name: folder / f"{name}s.parquet" for name in ("user", NUMBER)}
        if not all(path.is_file() for path in paths.values()):
            return None
        tables = {name: pq.read_table(path).to_pydict() for name, path in paths.items()}
        if not all({name, RAW} <= tables[name].keys() for name in tables):
            return None
        users, items = (dict(zip(tables[name][name], tables[name][RAW], strict=True)) for name in ("user", NUMBER))
        return cls(users, items)


def read_raw_ids(path: Path, catalogue: Catalogue) -> dict[str, int]:
    """Raw id -> item number, from a Parquet or CSV file of columns raw_id and item.

    Raises UserError that names file and column, if one is missing, a raw id stands twice, or an item of the catalogue
    has none.
    """
    import pandas as pd

    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype={RAW: str})
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as {'Parquet' if path.suffix == '.parquet' else 'CSV'} ({error})"
        ) from error
    if lacking := {RAW, NUMBER} - set(table.columns):
        raise UserError(f"{path}: has no column {min(lacking)}; it needs {RAW} and {NUMBER}")
    twice = table[RAW][table[RAW].duplicated()]
    if len(twice):
        raise UserError(f"{path}: raw id {twice.iloc[0]!r} stands twice")
    known = dict(zip(table[RAW].astype(str), table[NUMBER].astype(int).tolist(), strict=True))
    absent = sorted(catalogue.identifiers.keys() - set(known.values()))
    if absent:
        raise UserError(f"{path}: item {absent[0]} of the catalogue has no raw id there ({len(absent)} have none)")
    return known
