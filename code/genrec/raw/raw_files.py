"""Detects the format of raw interaction files (JSON lines, CSV or Parquet, plain or gzip, or a form of `rewriting` or
of `presets`) and their columns.

Amazon reviews need no flags, as their column names are known: 2014 and 2018 (`reviewerID`, `asin`, `overall`,
`unixReviewTime`) and 2023 (`user_id`, `parent_asin`, `rating`, `timestamp`, as JSON lines or the benchmark's CSV).
"""

import csv
import glob
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.raw.columns import KNOWN, choose_columns, guess_columns, is_header
from genrec.raw.presets import PRESETS, Preset, find_preset
from genrec.raw.rewriting import ITEM, USER, bundle_of, expanded, literal, whole_object
from genrec.runtime.errors import UserError
from genrec.runtime.text import read_blocks, read_json

FORMATS = ("json", "csv", "parquet")
DELIMITERS = ("::", "\t", ",", ";", "|")
BLANK = " "  # one or more blanks or tabs
_PARTS = {  # words of a file's or a folder's name -> split
    "train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class RawFile:
    """A raw file and how to read it."""

    path: Path
    form: str  # one of FORMATS
    names: tuple[str, ...]  # of all columns; for JSON, the keys of the first records
    columns: dict[str, str]  # role -> column; those of OPTIONAL may lack, and timestamp, where there is order alone
    delimiter: str = ","
    header: int = 0  # number of the header line; 0: none
    expand: str | None = None  # how its lines become records, see `rewriting`
    time_format: str | None = None  # of its timestamps, see `times`; None: told from the values

    @property
    def part(self) -> str | None:
        """See `part_of`."""
        return part_of(self.path)

    @property
    def timed(self) -> bool:
        """Whether interactions have times; else their order in the file counts."""
        return "timestamp" in self.columns


def part_of(path: Path) -> str | None:
    """The split that a file's name, or else its folder's, says: NAME.train.inter, valid/NAME.csv; None if neither."""
    for name in (path.name, path.parent.name):
        words = [_PARTS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _PARTS]
        if words:
            return words[-1]
    return None


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


def inspect(
    path: Path, form: str | None, wanted: dict[str, str | None], names: Sequence[str] = (), untimed: bool = False
) -> RawFile:
    """Detects how to read `path`.

    form: one of FORMATS, or a data set of `presets`; None: told from the content. wanted: role -> column given by the
    user, or None to guess. names: the columns of a CSV without a header line. untimed: whether a file without times
    will do. Raises UserError that names the file, and its columns if one of them is not found.
    """
    if form is not None and form not in FORMATS:
        return _by_preset(path, find_preset(form), wanted)
    with path.open("rb") as file:
        start = file.read(4)
    if form == "parquet" or (form is None and start == b"PAR1"):
        try:
            names = tuple(pq.read_schema(path).names)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: not a Parquet file, or damaged ({error}); fetch or write it again") from error
        return RawFile(path, "parquet", names, choose_columns(path, names, wanted, untimed))
    numbered = _first_lines(path)
    if not numbered:
        raise UserError(f"{path}: holds nothing; fetch or write it again")
    lines = list(numbered.values())
    if form == "json" or (form is None and lines[0].lstrip()[:1] in ("{", "[")):
        return _inspect_json(path, lines, wanted, untimed)
    return _inspect_csv(path, numbered, wanted, tuple(names), untimed)


def _by_preset(path: Path, preset: Preset, wanted: dict[str, str | None]) -> RawFile:
    """The file as a preset says; what the user names overrules it."""
    chosen = dict(preset.roles) | {role: name for role, name in wanted.items() if name is not None}
    if preset.form == "json":
        records = [record for record in map(literal, _first_lines(path).values()) if isinstance(record, dict)]
        if preset.expand == "bundle":
            records = [each for record in records for each in map(json.loads, expanded(record))]
        names = tuple(dict.fromkeys(key for record in records for key in record))
        expand = preset.expand or _literals_of(path)
        return RawFile(
            path, "json", names, choose_columns(path, names, chosen), expand=expand, time_format=preset.time_format
        )
    if not preset.columns:
        found = inspect(path, None, chosen)
        return replace(found, time_format=preset.time_format)
    if preset.expand:
        columns = {USER: USER, ITEM: ITEM, "timestamp": "timestamp"}
        return RawFile(path, "json", tuple(columns), columns, expand=preset.expand, time_format=preset.time_format)
    columns = choose_columns(path, preset.columns, chosen)
    return RawFile(path, "csv", preset.columns, columns, preset.delimiter or ",", time_format=preset.time_format)


def _literals_of(path: Path) -> str | None:
    """How lines are read that are Python literals; None where they are JSON."""
    first = next(iter(_first_lines(path).values()), "")
    return "literals" if first.lstrip().startswith(("{'", "{u'")) else None


def _inspect_json(path: Path, lines: Sequence[str], wanted: dict[str, str | None], untimed: bool) -> RawFile:
    records = [record for record in map(literal, lines) if isinstance(record, dict)]
    expand = _literals_of(path)
    if not records or (len(lines) == 1 and all(isinstance(value, list) for value in records[0].values())):
        expand = whole_object(path)
        if expand == "sequences":
            return RawFile(path, "json", (USER, ITEM), {USER: USER, ITEM: ITEM}, expand=expand)
        if expand is None:
            raise UserError(f"{path}, line 1: {lines[0].strip()[:60]!r} {_not_records(lines)}")
        content = read_json(path)
        assert isinstance(content, list)
        records = content[:100]
    elif (key := bundle_of(records[0])) is not None and not _has_roles(records[0]):
        expand = "bundle"
        records = [each for record in records for each in map(json.loads, expanded(record))]
        if not records:
            raise UserError(f"{path}: no interaction under {key} in the first lines")
    names = tuple(dict.fromkeys(key for record in records for key in record))
    return RawFile(path, "json", names, choose_columns(path, names, wanted, untimed), expand=expand)


def _has_roles(record: dict) -> bool:
    """Whether a record is one interaction."""
    return all(any(name.lower() in KNOWN[role] for name in record) for role in ("user", "item"))


def _not_records(lines: Sequence[str]) -> str:
    if lines[0].lstrip().startswith("["):
        return "begins a JSON array, and not one of objects"
    return (
        f"is no JSON object, nor is any of the first {len(lines)} lines; one object a line is needed, an array of "
        "objects, or an object user -> list of items"
    )


def _inspect_csv(
    path: Path, numbered: dict[int, str], wanted: dict[str, str | None], names: tuple[str, ...], untimed: bool
) -> RawFile:
    first, lines = next(iter(numbered)), list(numbered.values())
    delimiter = next((mark for mark in DELIMITERS if mark in lines[0]), BLANK)
    if delimiter in (",", ";", "|"):
        delimiter = max((",", ";", "|"), key=lines[0].count)
    if delimiter == BLANK and len(lines[0].split()) < 2:
        raise UserError(
            f"{path}, line {first}: {lines[0].strip()[:60]!r} has none of the delimiters that are taken: comma, tab, "
            ";, |, :: and blanks"
        )
    rows = [_fields(path, number, line, delimiter) for number, line in numbered.items()]
    if names and len(names) != len(rows[0]):
        raise UserError(f"{path}, line 1: {len(rows[0])} fields, but --columns names {len(names)}; name them all")
    if names:
        return RawFile(path, "csv", names, choose_columns(path, names, wanted, untimed), delimiter)
    if is_header(rows[0], wanted):
        return RawFile(
            path, "csv", tuple(rows[0]), choose_columns(path, rows[0], wanted, untimed), delimiter, header=first
        )
    widths = {len(row) for row in rows}
    words = [line.split() for line in lines]
    if delimiter in (BLANK, "\t") and all(word.isdecimal() for row in words for word in row):
        many = {len(row) for row in words}
        # P5, TIGER, S3-Rec: user item item …; MicroLens, with a tab behind the user.
        if max(many) > 6 or (len(many) > 1 and (delimiter == BLANK or widths == {2})):
            return RawFile(path, "json", (USER, ITEM), {USER: USER, ITEM: ITEM}, expand="items")
        if many == {2}:  # SASRec: user item, in order
            return RawFile(path, "csv", (USER, ITEM), {USER: USER, ITEM: ITEM}, delimiter)
    if any(field.replace(".", "").lstrip("-").isdecimal() for field in rows[0]):
        guess = ",".join(guess_columns(rows))
        raise UserError(
            f"{path}, line {first}: is no header, but data: {lines[0].strip()[:60]!r}; "
            f"name the columns, such as --columns {guess}, which is our guess, or the data set: --format "
            f"{', '.join(sorted(PRESETS))}"
        )
    return RawFile(path, "csv", tuple(rows[0]), choose_columns(path, rows[0], wanted, untimed), delimiter, header=first)


def _fields(path: Path, number: int, line: str, delimiter: str) -> list[str]:
    line = line.rstrip("\r\n")
    if delimiter == BLANK:
        return line.split()
    if len(delimiter) > 1:
        return line.split(delimiter)
    try:
        fields = next(csv.reader([line], delimiter=delimiter))
    except csv.Error as error:
        raise UserError(f"{path}, line {number}: not CSV ({error})") from error
    return line.split(delimiter) if delimiter == "\t" and len(fields) != line.count("\t") + 1 else fields


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
