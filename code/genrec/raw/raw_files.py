"""Detects the format (JSON lines, CSV or Parquet, plain or gzip) and the columns of raw interaction files.

Amazon reviews need no flags, as their column names are known: 2014 and 2018 (`reviewerID`, `asin`, `overall`,
`unixReviewTime`) and 2023 (`user_id`, `parent_asin`, `rating`, `timestamp`, as JSON lines or the benchmark's CSV).
"""

import csv
import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.runtime.errors import UserError
from genrec.runtime.text import read_blocks

FORMATS = ("json", "csv", "parquet")
# Role -> known column names, best first (2023: parent_asin is the product, asin its variant).
KNOWN = {
    "user": ("user", "user_id", "userid", "reviewerid", "uid"),
    "item": ("item", "item_id", "itemid", "parent_asin", "asin", "product_id", "movieid", "iid"),
    "timestamp": ("timestamp", "unixreviewtime", "time", "unix_time", "ts", "datetime", "date"),
    "rating": ("rating", "overall", "score", "stars"),
}
DELIMITERS = ",\t;|"


@dataclass(frozen=True)
class RawFile:
    """A raw file and how to read it."""

    path: Path
    form: str  # one of FORMATS
    names: tuple[str, ...]  # of all columns; for JSON, the keys of the first records
    columns: dict[str, str]  # role -> column; a file without ratings has no "rating"
    delimiter: str = ","
    header: int = 0  # number of the header line; 0: none


def find_files(pattern: str) -> list[Path]:
    """Returns the files that match a comma-separated list of paths and globs, sorted and without duplicates.

    Raises UserError for an entry that matches no file.
    """
    found: set[Path] = set()
    for part in filter(None, (part.strip() for part in pattern.split(","))):
        # Path.glob does not support absolute patterns.
        paths = [part] if Path(part).exists() else glob.glob(part, recursive=True)  # noqa: PTH207
        files = [Path(path) for path in paths if Path(path).is_file()]
        if not files:
            raise UserError(f"--input {part}: no such file; pass files, or globs in quotes, separated by commas")
        found.update(files)
    if not found:
        raise UserError("--input is empty; pass the raw files: INPUT=reviews.json.gz bash script/process_data.sh")
    return sorted(found)


def inspect(path: Path, form: str | None, wanted: dict[str, str | None], names: Sequence[str] = ()) -> RawFile:
    """Detects how to read `path`.

    wanted: role -> column given by the user, or None to guess. names: the columns of a CSV without a header line.
    Raises UserError that names the file, and its columns if one of them is not found.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if form == "parquet" or (form is None and start == b"PAR1"):
        try:
            names = tuple(pq.read_schema(path).names)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: not a Parquet file, or damaged ({error}); fetch or write it again") from error
        return RawFile(path, "parquet", names, _choose(path, names, wanted))
    numbered = _first_lines(path)
    if not numbered:
        raise UserError(f"{path}: holds nothing; fetch or write it again")
    lines = list(numbered.values())
    if form == "json" or (form is None and lines[0].lstrip()[:1] in ("{", "[")):
        names = _keys(path, lines)
        return RawFile(path, "json", names, _choose(path, names, wanted))
    delimiter = max(DELIMITERS, key=lines[0].count)
    if delimiter not in lines[0]:
        raise UserError(
            f"{path}, line {next(iter(numbered))}: {lines[0].strip()[:60]!r} has none of the delimiters that are "
            "taken: comma, tab, ; and |; put one in place of its own: sed 's/::/\\t/g' FILE > NEW"
        )
    try:
        named = tuple(next(csv.reader([lines[0]], delimiter=delimiter)))
    except csv.Error as error:
        raise UserError(f"{path}, line {next(iter(numbered))}: not CSV ({error})") from error
    if names and len(names) != len(named):
        raise UserError(f"{path}, line 1: {len(named)} fields, but --columns names {len(names)}; name them all")
    columns = _choose(path, tuple(names) or named, wanted)
    return RawFile(path, "csv", tuple(names) or named, columns, delimiter, header=0 if names else next(iter(numbered)))


def _choose(path: Path, names: Sequence[str], wanted: dict[str, str | None]) -> dict[str, str]:
    """Returns role -> column."""
    lower, chosen = {name.lower(): name for name in reversed(names)}, {}
    for role, known in KNOWN.items():
        name = wanted.get(role)
        if name is None:
            name = next((lower[guess] for guess in known if guess in lower), None)
        if name in names:
            chosen[role] = name
        elif role != "rating" or wanted.get(role) is not None:
            said = f"--{role} {name}: no such column" if name else f"no column is known as {role}; pass --{role} NAME"
            raise UserError(f"{path}: {said}; the columns are {', '.join(map(str, names[:40]))}")
    return chosen


def _keys(path: Path, lines: Sequence[str]) -> tuple[str, ...]:
    """Returns the keys that occur in the first records, as a record may lack some."""
    keys: dict[str, None] = {}
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue  # counted and logged when the whole file is read
        if isinstance(record, dict):
            keys.update(dict.fromkeys(record))
    if not keys:
        raise UserError(f"{path}, line 1: {lines[0].strip()[:60]!r} {_not_objects(lines)}")
    return tuple(keys)


def _not_objects(lines: Sequence[str]) -> str:
    """Describes lines of which none is a JSON object, and how to convert them."""
    first = lines[0].lstrip()
    if first.startswith("["):
        return "begins a JSON array, and one object a line is needed: jq -c '.[]' FILE > NEW"
    if first.startswith(("{'", "{u'")):
        return (
            "is a Python dict, as in Amazon's files of 2014, and JSON is needed: python -c 'import ast, json, sys; "
            "[print(json.dumps(ast.literal_eval(line))) for line in sys.stdin]' < FILE > NEW"
        )
    return f"is no JSON object, nor is any of the first {len(lines)} lines; one object a line is needed"


def _first_lines(path: Path) -> dict[int, str]:
    """Returns number -> line for the first 100 lines, without blank ones."""
    block = next(read_blocks(path), b"")
    lines = block.decode("utf-8", "replace").split("\n")[:100]
    return {number: line for number, line in enumerate(lines, 1) if line.strip()}


def as_lines(block: bytes, number: int) -> pa.RecordBatch:
    """Converts a block to an Arrow batch of its lines: `line`, counted from `number`, and `text`, with its line end.

    Invalid UTF-8 becomes U+FFFD. The text is not copied.
    """
    try:
        block.decode()
    except UnicodeDecodeError:
        block = block.decode("utf-8", "replace").encode()
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    text = pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(block))
    return pa.record_batch({"line": pa.array(np.arange(number, number + len(ends))), "text": text})
