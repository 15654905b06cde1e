"""Tables as Markdown and as CSV, and the import of pyplot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from genrec.runtime.files import write_text

if TYPE_CHECKING:
    import pandas as pd


def to_markdown(table: pd.DataFrame, columns: Sequence[str] | None = None) -> str:
    """Formats a Markdown table with numbers right-aligned and rounded to meaningful digits."""
    import pandas as pd

    table = table[list(columns)] if columns else table
    header = [str(name) for name in table.columns]
    rows = [[_cell(name, value) for name, value in row.items()] for row in table.to_dict("records")]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    text = [
        pd.api.types.is_string_dtype(table[name]) or pd.api.types.is_object_dtype(table[name]) for name in table.columns
    ]
    lines = [
        "| " + " | ".join(c.ljust(w) if t else c.rjust(w) for c, w, t in zip(r, widths, text, strict=True)) + " |"
        for r in [header, *rows]
    ]
    rule = "|" + "|".join("-" * (w + 2) if t else "-" * (w + 1) + ":" for w, t in zip(widths, text, strict=True)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def _cell(name: str, value: object) -> str:
    import pandas as pd

    if pd.isna(value):
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if name.startswith(("Recall", "NDCG")) else f"{value:.2f}"


def csv_name(column: str) -> str:
    """The name of a table's column in a CSV file, without blanks: "over gamma 0" is over_gamma_0, "requests/s"
    requests_per_s, "Recall@5 s.e." Recall@5_se."""
    name = str(column).replace("/s", " per s").replace("s.e.", "se").replace("±", "sd").replace("%", "percent")
    return re.sub(r"[^\w@+]+", "_", name).strip("_")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Writes a table as CSV, its columns by `csv_name` and its numbers with six digits."""
    named = table.rename(columns=csv_name)
    if twice := named.columns[named.columns.duplicated()].tolist():
        raise ValueError(f"two columns of {path.name} are called {twice[0]}")
    write_text(path, named.to_csv(index=False, float_format="%.6g"))


def pyplot() -> ModuleType:
    """Imports pyplot without a display, when something is drawn, since the import takes a second."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot
