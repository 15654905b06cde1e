"""Item texts from Amazon's metadata of 2014, 2018 and 2023, or from any JSON lines, CSV or Parquet file."""

import ast
import csv
import html
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow
import pyarrow.parquet

from genrec.data.splits import load_splits
from genrec.raw.rewriting import literal
from genrec.runtime.errors import UserError
from genrec.runtime.files import sha256
from genrec.runtime.progress import progress_bar
from genrec.runtime.text import read_bytes, read_json, read_lines

ITEMS = "items.parquet"  # written by both process_data programs: raw_id (string), item (int)
NUMBER = "item"  # the column of item numbers
# Item id columns; the first present is used.
IDS = (
    "parent_asin", "asin", "raw_id", "item_id", NUMBER, "movieId", "business_id", "book_id", "video_id", "article_id",
)  # fmt: skip
FIELDS = {  # the parts of a text, in order, and the columns they come from
    "title": ("title", "movie_title", "name", "prod_name"),
    "brand": ("brand", "store"),
    "categories": ("categories", "category", "genres", "class"),
    "description": ("description", "features", "feature"),
}
GENRES = (  # of u.item, whose last columns they are
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
TEXT = "text"  # a column with the complete text, used unchanged in place of FIELDS
_BROKEN = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)  # raised by json and ast


@dataclass
class ItemTexts:
    """Texts by item number, and the problems of the file they were read from."""

    texts: list[str]  # (n_items,); the raw id for an item without a text
    without: list[int] = field(default_factory=list)  # items without any text
    absent: Counter = field(default_factory=Counter)  # field -> number of items that lack it
    broken: list[str] = field(default_factory=list)  # one line per broken row: where, and why
    twice: int = 0  # rows of an item that already has a text; the first is used
    others: int = 0  # rows of items that are not in the data set

    @property
    def fingerprint(self) -> str:
        return sha256("\0".join(self.texts).encode())[:16]

    def problems(self) -> list[str]:
        """Returns one line for each kind of problem; a missing field is one only for items that lack all fields."""
        found = []
        if self.broken:
            found.append(f"{len(self.broken)} broken rows were left out, the first: {self.broken[0]}")
        if self.without:
            first = ", ".join(f"{i} ({self.texts[i]})" for i in self.without[:10])
            found.append(f"{len(self.without)} of {len(self.texts)} items have no text, only their raw id: {first}"
                         + (", …" if len(self.without) > 10 else ""))  # fmt: skip
        return found


def item_names(folder: Path, count: int | None = None, highest: int | None = None) -> list[str]:
    """Returns the raw id of every item by number: of `items.parquet`, or else the numbers up to the highest known.

    count: how many items there are. highest: number that the metadata name. Raises UserError if the table lacks a
    column, its numbers are not 0, 1, 2 … with a distinct raw id each, or there are more items than `count`.
    """
    path = folder / ITEMS
    if not path.is_file():
        most = max(load_splits(folder).items())
        if count is not None and most >= count:
            raise UserError(f"--item_count {count}: {folder} has an item {most}; items count from 0")
        return [str(item) for item in range(count if count is not None else max(most, highest or 0) + 1)]
    table = _parquet(path)
    lacking = {"raw_id", NUMBER} - set(table.schema_arrow.names)
    if lacking:
        raise UserError(f"{path}: has no column {min(lacking)}; process_data.sh writes raw_id and {NUMBER}")
    columns = table.read(["raw_id", NUMBER]).to_pydict()
    names = {number: str(raw) for raw, number in zip(columns["raw_id"], columns[NUMBER], strict=True)}
    if sorted(names) != list(range(len(columns["raw_id"]))) or len(set(names.values())) < len(names):
        raise UserError(f"{path}: the items are not numbered 0 to {len(columns['raw_id']) - 1} with a raw id each")
    return [names[number] for number in range(len(names))]


def highest_number(path: Path, id_column: str | None = None) -> int | None:
    """The highest item number that metadata name, if they know items by their numbers."""
    if id_column not in (None, NUMBER):
        return None
    numbers = [row[NUMBER] for _, row in _rows(path) if isinstance(row, dict) and row.get(NUMBER) is not None]
    return max((int(number) for number in numbers if str(number).isdecimal()), default=None)


def read_texts(path: Path, names: list[str], id_column: str | None = None) -> ItemTexts:
    """Reads the text of every item. names: from `item_names`. id_column: the column of item ids; None: one of IDS.

    A column `item` holds item numbers, any other raw ids. Raises UserError if no row has the text of a known item.
    """
    result, fields_of = ItemTexts(list(names)), {}
    by_raw_id, by_number = ({name: i for i, name in enumerate(of)} for of in (names, map(str, range(len(names)))))
    for where, row in progress_bar(_rows(path), f"read {path.name}", "row"):
        if isinstance(row, str):
            result.broken.append(f"{where}: {row}")
            continue
        column = id_column or next((name for name in IDS if row.get(name) is not None), None)
        if column is None or row.get(column) is None:
            result.broken.append(f"{where}: no {id_column or ' or '.join(IDS)}")
            continue
        item = (by_number if column == NUMBER else by_raw_id).get(str(row[column]))
        if item is None:
            result.others += 1
        elif item in fields_of:
            result.twice += 1
        elif any((said := _texts_by_field(row)).values()):
            fields_of[item] = said
    if not fields_of:
        first = "".join(f"; {len(result.broken)} broken rows, the first: {b}" for b in result.broken[:1])
        raise UserError(f"{path}: no row names an item of the data set, such as {names[0]!r}, and its title, "
                        "brand, categories, description or text; --id_column says which column names the item"
                        + first)  # fmt: skip
    for item in range(len(names)):
        said = fields_of.get(item, {})
        result.absent.update(name for name in FIELDS if not said.get(name) and TEXT not in said)
        if said:
            parts = (f"{name.capitalize()}: {text}" for name, text in said.items() if text)
            result.texts[item] = said[TEXT] if TEXT in said else "\n".join(parts)
        else:
            result.without.append(item)
    return result


def known_titles(folder: Path) -> dict[int, str]:
    """Returns the titles of items by number that a data set's folder has: in items.parquet, or in a NAME.item.json."""
    if (path := folder / ITEMS).is_file() and "title" in _parquet(path).schema_arrow.names:
        columns = _parquet(path).read([NUMBER, "title"]).to_pydict()
        return {item: title for item, title in zip(columns[NUMBER], columns["title"], strict=True) if title}
    found = sorted(folder.glob("*.item.json"))
    return read_titles(found[0], None) if len(found) == 1 else {}


def read_titles(path: Path, raw_ids: Mapping[str, int] | None) -> dict[int, str]:
    """Reads titles by item number from a column `title`; the item's id is in one of IDS.

    raw_ids: raw id -> item; without, items are known by their numbers alone. Raises UserError if there is no title of a
    known item.
    """
    titles: dict[int, str] = {}
    for _, row in _rows(path):
        if isinstance(row, str):
            continue
        column = next((name for name in IDS if row.get(name) is not None), None)
        said = "" if column is None else str(row[column])
        number = int(said) if column == NUMBER and said.isdecimal() else (raw_ids or {}).get(said)
        if number is not None and (title := _joined(row, FIELDS["title"])):
            titles.setdefault(number, title)
    if not titles:
        needed = NUMBER if raw_ids is None else f"{NUMBER} or raw_id"
        raise UserError(f"{path}: no row has the title of an item; it needs the columns {needed} and title")
    return titles


def _texts_by_field(row: dict) -> dict[str, str]:
    """Returns the texts of a row by field."""
    if isinstance(row.get(TEXT), str):
        return {TEXT: row[TEXT].strip()}
    return {name: _joined(row, columns) for name, columns in FIELDS.items()}


def _joined(row: dict, columns: Iterable[str]) -> str:
    """Joins the texts of the columns, without HTML and duplicates."""
    parts = dict.fromkeys(part for column in columns for part in _flatten(row.get(column)))
    clean = (" ".join(html.unescape(re.sub(r"<[^<>]+>", " ", part)).split()) for part in parts)
    return ", ".join(dict.fromkeys(part for part in clean if part))


def _flatten(value: object) -> Iterator[str]:
    """Iterates over the texts in nested lists."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _flatten(part)
    elif isinstance(value, str):
        listed = literal_list(value)
        if listed is None:
            yield value
        else:
            yield from _flatten(listed)


def literal_list(text: str) -> list | None:
    """The list that a text writes, as metadata hold some: "['one', 'two']". None for any other text."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        value = ast.literal_eval(text)
    except _BROKEN:
        return None
    return value if isinstance(value, list) else None


def _rows(path: Path) -> Iterator[tuple[str, dict | str]]:
    """Iterates over (where, row), or (where, problem) for a broken row, without reading the whole file at once."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        batches = _parquet(path).iter_batches(batch_size=4096)
        yield from ((f"{path}, row {n}", row) for n, row in enumerate((r for b in batches for r in b.to_pylist()), 1))
    elif kind == "dat" or path.name == "u.item":
        yield from _movielens_rows(path)
    elif kind in ("csv", "tsv", "item"):  # the last is RecBole's
        yield from _csv_rows(path, read_lines(path), "," if kind == "csv" else "\t")
    elif kind in ("json", "jsonl", "ndjson"):
        first = next((line for line in read_lines(path) if line.strip()), "")
        whole = isinstance(_parse(first), str) or all(isinstance(value, dict) for value in _parse(first).values())
        yield from (_whole_rows(path) if whole else None) or _json_rows(path, read_lines(path))
    else:
        raise UserError(
            f"{path}: ends in none of .json, .jsonl, .ndjson, .csv, .tsv, .item (plain or .gz), .parquet, .dat"
        )


def _whole_rows(path: Path) -> list[tuple[str, dict]] | None:
    """The rows of a file that is one JSON object item -> {title, …}, as of LC-Rec and MiniOneRec, or an array of
    objects; None for any other."""
    try:
        content = read_json(path)
    except UserError:
        return None
    if isinstance(content, dict) and content and all(isinstance(row, dict) for row in content.values()):
        column = NUMBER if all(key.isdecimal() for key in content) else "raw_id"
        return [(f"{path}, key {key}", {**row, column: key}) for key, row in content.items()]
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        return [(f"{path}, entry {number}", row) for number, row in enumerate(content, 1)]
    return None


def _movielens_rows(path: Path) -> Iterator[tuple[str, dict | str]]:
    """Of MovieLens' movies.dat (1M, 10M): number::title::genres, and u.item (100K): a 0 or 1 for each genre."""
    lines = read_bytes(path).decode("latin-1").splitlines()  # as GroupLens wrote them
    for number, line in enumerate(lines, 1):
        if path.name == "u.item":
            movie, title, *rest = [*line.split("|"), ""]
            genres = [genre for genre, has in zip(GENRES, rest[3:], strict=False) if has == "1"]
        else:
            movie, title, listed = [*line.split("::"), "", ""][:3]
            genres = listed.split("|")
        good = movie.isdecimal() and title
        row = {"item_id": movie, "title": title, "genres": genres}
        yield f"{path}, line {number}", row if good else f"no film of MovieLens: {line[:60]!r}"


def _csv_rows(path: Path, file: Iterable[str], delimiter: str) -> Iterator[tuple[str, dict | str]]:
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.DictReader(file, delimiter=delimiter, quoting=quoting)
    try:
        reader.fieldnames = [name.partition(":")[0] for name in reader.fieldnames or ()]  # of RecBole's name:type
        for row in reader:
            uneven = None in row or None in row.values()
            yield f"{path}, line {reader.line_num}", "not as many fields as the header" if uneven else row
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def _json_rows(path: Path, file: Iterable[str]) -> Iterator[tuple[str, dict | str]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield f"{path}, line {number}", _parse(line)


def _parse(line: str) -> dict | str:
    """Parses a JSON object or, as in the metadata of 2014, a Python dict of constants; nothing is executed."""
    row = literal(line)
    if row is None:
        return f"neither JSON nor a dict of constants: {line.strip()[:60]!r}"
    return row if isinstance(row, dict) else f"not an object: {line.strip()[:60]!r}"


def _parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a Parquet file, or truncated ({error})") from error
