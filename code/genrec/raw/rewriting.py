"""Files whose lines are no records: rewritten, while they are read, as JSON lines of records."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from genrec.runtime.errors import UserError
from genrec.runtime.text import read_json, read_lines

USER, ITEM = "user", "item"  # the columns of rewritten sequences
# Number of the line, or, of what has no times, of the interaction; and a record as JSON, or a line that is none.
Row = tuple[int, str]
_BROKEN = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)


def literal(line: str) -> object:
    """The value of a line of JSON or, as in Amazon's files of 2014, of Python constants; nothing is executed. None for
    anything else."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes such as \/ in text that is not Python
            return ast.literal_eval(line.strip())
    except _BROKEN:
        return None


def bundle_of(record: dict) -> str | None:
    """The key of a record under which its interactions stand, as a list of objects; None if it has none."""
    return next(
        (key for key, value in record.items() if isinstance(value, list) and value and isinstance(value[0], dict)), None
    )


def whole_object(path: Path) -> str | None:
    """Returns "sequences" for one JSON object user -> items, "array" for one JSON array of records, else None."""
    try:
        content = read_json(path)
    except UserError:
        return None
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        return "array"
    if isinstance(content, dict) and content and all(isinstance(items, list) for items in content.values()):
        return "sequences"
    return None


def rewritten(path: Path, kind: str) -> Iterator[Row]:
    """The records of a file. kind: a key of `_WHOLE` or of `_LINES`."""
    if kind in _WHOLE:
        return _WHOLE[kind](path)
    return ((number, row) for number, line in enumerate(read_lines(path), 1) if line.strip()
            for row in _LINES[kind](line))  # fmt: skip


def _sequences(path: Path) -> Iterator[Row]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object that maps users to lists of items")
    number = 0
    for user, items in content.items():
        for item in items:
            number += 1
            yield number, json.dumps({USER: user, ITEM: str(item)})


def _lines_of_items(path: Path) -> Iterator[Row]:
    """`user item item …`."""
    number = 0
    for line in read_lines(path):
        user, *items = line.split() or [""]
        for item in items:
            number += 1
            yield number, json.dumps({USER: user, ITEM: item})


def _array(path: Path) -> Iterator[Row]:
    content = read_json(path)
    assert isinstance(content, list)
    return ((number, json.dumps(row)) for number, row in enumerate(content, 1))


def _literals(line: str) -> Iterable[str]:
    record = literal(line)
    return [json.dumps(record) if isinstance(record, dict) else line]


def _bundle(line: str) -> Iterable[str]:
    record = literal(line)
    return expanded(record) if isinstance(record, dict) else [line]


def expanded(record: dict) -> list[str]:
    """{"user_id": …, "reviews": [{"item_id": …}, …]}: a record for each of the list, with the keys around it."""
    key = bundle_of(record)
    if key is None:
        return []
    around = {name: value for name, value in record.items() if name != key}
    return [json.dumps(around | inner) for inner in record[key]]


def _impressions(line: str) -> Iterable[str]:
    """MIND: what was clicked ("N123-1") of what was shown, at the time of the impression."""
    fields = line.rstrip("\r\n").split("\t")
    if len(fields) != 5:
        return [line]
    _, user, time, _, shown = fields
    return [
        json.dumps({USER: user, ITEM: one.removesuffix("-1"), "timestamp": time})
        for one in shown.split() if one.endswith("-1")
    ]  # fmt: skip


_WHOLE: dict[str, Callable[[Path], Iterator[Row]]] = {
    "sequences": _sequences, "items": _lines_of_items, "array": _array,
}  # fmt: skip
_LINES: dict[str, Callable[[str], Iterable[str]]] = {
    "literals": _literals, "bundle": _bundle, "impressions": _impressions,
}  # fmt: skip
