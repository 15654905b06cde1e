"""Reading of raw files, which may exceed memory, into arrays of interactions or samples, in parallel with duckdb.

duckdb handles the raw ids and spills them to disk if needed; the arrays take 20 bytes per interaction.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from genrec.raw.columns import ROLES
from genrec.raw.raw_files import BLANK, RawFile, as_lines
from genrec.raw.rewriting import rewritten
from genrec.raw.times import check_times, doubled, sql_text, time_expression
from genrec.runtime.errors import UserError
from genrec.runtime.progress import progress_bar
from genrec.runtime.text import read_blocks

logger = logging.getLogger(__name__)

SHOWN = 5  # broken records to log
MEMORY = "1GB"  # limit of duckdb, which spills the rest to disk
COLUMNS = ("user", "item", "timestamp", "rating", "file")
BATCH = 50_000  # rewritten records handed to duckdb at once


@dataclass(frozen=True)
class Records:
    """n interactions, sorted by global time, then raw user id, raw item id and rating.

    `user` and `item` are indices into `users` and `items`.
    """

    user: np.ndarray  # (n,) int32
    item: np.ndarray  # (n,) int32
    timestamp: np.ndarray  # (n,) int64, microseconds since 1970 UTC
    rating: np.ndarray  # (n,) float32, NaN where the file has none
    file: np.ndarray  # (n,) int32, number of the file
    users: np.ndarray  # raw ids, str
    items: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, chosen: np.ndarray) -> "Records":
        """Selects interactions by a mask or indices; users and items keep their numbers."""
        columns = (getattr(self, name)[chosen] for name in COLUMNS)
        return Records(*columns, self.users, self.items)


@dataclass(frozen=True)
class RecordsRead:
    records: Records
    read: int  # records in the files, without blank lines
    broken: int
    below: int  # valid records with a rating below the minimum


def read_records(sources: Sequence[RawFile], min_rating: float | None, strict: bool, work: Path) -> RecordsRead:
    """Reads interactions with a rating of at least `min_rating`, or with any if it is None or a file has no ratings.

    Broken records are counted, and the first are logged with file, line and field. work: a folder for data that do not
    fit in memory. Raises UserError for the first broken record if `strict`, if most times of a file fall in 1970, or if
    no interaction is left.
    """
    with _loaded(sources, strict, work) as database:
        ((read, broken),) = database.execute("SELECT count(*), count(problem) FROM records").fetchall()
        logger.info(f"{read:,} records read; ordered by time")
        records = _ordered(database, min_rating)
    if not len(records):
        least = "" if min_rating is None else f" with a rating of at least {min_rating:g} (--min_rating)"
        raise UserError(f"--input: no whole record{least} among {read:,}, of which {broken:,} are broken")
    return RecordsRead(records, read, broken, read - broken - len(records))


RawSample = tuple[str, str, str]  # user, history (a list, as text), item


def read_raw_samples(sources: Sequence[RawFile], strict: bool, work: Path) -> list[list[RawSample]]:
    """Reads the samples of each file, in its order. Raises UserError as `read_records` does."""
    with _loaded(sources, strict, work) as database:
        return [
            database.execute(
                "SELECT user, history, item FROM records WHERE file = ? AND problem IS NULL ORDER BY line", [number]
            ).fetchall()
            for number in range(len(sources))
        ]


@contextmanager
def _loaded(sources: Sequence[RawFile], strict: bool, work: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the table records, of all files."""
    with duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": str(work)}) as database:
        database.execute(
            "SET TimeZone = 'UTC'; SET autoinstall_known_extensions = false; SET preserve_insertion_order = false;"
            "SET enable_progress_bar = false"
        )
        database.execute(
            "CREATE TABLE records (file INT, line BIGINT, user VARCHAR, item VARCHAR, time BIGINT, rating FLOAT,"
            "history VARCHAR, problem VARCHAR, value VARCHAR)"
        )
        for number, source in enumerate(sources):
            _load(database, number, source)
            _check(database, sources[: number + 1], number, strict)
            check_times(database, number, source)
        yield database


def _load(database: duckdb.DuckDBPyConnection, number: int, source: RawFile) -> None:
    query = f"INSERT INTO records {_parsed(source, number)}"
    bar = progress_bar(source.path.stat().st_size, source.path.name, "B", unit_scale=True)
    failure: list[UserError] = []

    def batches() -> Iterator[pa.RecordBatch]:
        if source.expand is not None:
            yield from _rewritten_batches(source, source.expand)
            return
        line = 1
        for block in read_blocks(source.path, lambda position: bar.update(position - bar.n)):
            batch = as_lines(block, line)
            line += len(batch)
            yield batch

    def watched() -> Iterator[pa.RecordBatch]:
        try:
            yield from _ahead(batches())
        except UserError as error:  # raised again below, as duckdb would wrap it
            failure.append(error)
            raise

    try:
        with bar:
            if source.form == "parquet":
                database.execute(query, {"path": str(source.path)})
            else:
                schema = pa.schema({"line": pa.int64(), "text": pa.string()})
                database.register("lines", pa.RecordBatchReader.from_batches(schema, watched()))
                database.execute(query)
    except (duckdb.Error, pa.ArrowException) as error:
        if failure:
            raise failure[0] from None
        raise UserError(f"{source.path}: cannot be read ({str(error).splitlines()[0]})") from error


def _rewritten_batches(source: RawFile, kind: str) -> Iterator[pa.RecordBatch]:
    rows = rewritten(source.path, kind)
    while chunk := list(islice(rows, BATCH)):
        numbers, texts = zip(*chunk, strict=True)
        yield pa.record_batch({"line": pa.array(numbers, pa.int64()), "text": pa.array(texts, pa.string())})


def _ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Prepares each batch while duckdb parses the previous one: decompressing gzip takes as long as parsing."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


def _parsed(source: RawFile, number: int) -> str:
    """Returns the query for the records of a file: fields as text, then their values, then what is wrong with them."""
    ratings, timed = "rating" in source.columns, source.timed
    return f"""
        WITH raw AS ({_fields(source)}),
        fields AS (
            SELECT line, text, f, f[1] AS user, f[2] AS item, TRY_CAST(f[3] AS DOUBLE) AS number,
                TRY_CAST({"f[4]" if ratings else "NULL"} AS FLOAT) AS rating, f[5] AS history
            FROM raw),
        timed AS (SELECT *, {time_expression(source.time_format) if timed else "line"} AS time FROM fields),
        judged AS (
            SELECT *, CASE WHEN f IS NULL THEN 'line'
                WHEN coalesce(user, '') = '' OR contains(user, chr(65533)) THEN 'user'
                WHEN coalesce(item, '') = '' OR contains(item, chr(65533)) THEN 'item'
                WHEN {timed} AND time IS NULL THEN 'timestamp'
                WHEN {ratings} AND NOT coalesce(isfinite(rating), false) THEN 'rating' END AS problem
            FROM timed)
        SELECT {number}, line, user, item, time, rating, history, problem,
            CASE problem WHEN 'line' THEN text WHEN 'user' THEN user WHEN 'item' THEN item
                WHEN 'timestamp' THEN f[3] WHEN 'rating' THEN f[4] END
        FROM judged"""


def _fields(source: RawFile) -> str:
    """Returns the query for line, text and f, the list of the ROLES as text, NULL for what the file has not."""
    if source.form == "parquet":
        fields = [
            f'CAST("{doubled(source.columns[role], chr(34))}" AS VARCHAR)' if role in source.columns else "NULL"
            for role in ROLES
        ]
        return f"""SELECT file_row_number + 1 AS line, NULL AS text, [{", ".join(fields)}] AS f
            FROM read_parquet($path, file_row_number = true)"""
    if source.form == "json":
        names = [source.columns.get(role) for role in ROLES]
        paths = ", ".join(sql_text("/" + (name or chr(0)).replace("~", "~0").replace("/", "~1")) for name in names)
        fields_of = f"TRY(json_extract_string(text, [{paths}]))"  # NULL if the text is not JSON
        return f"SELECT line, text, {fields_of} AS f FROM lines WHERE text NOT IN (chr(10), chr(13) || chr(10))"
    places = [source.names.index(source.columns[role]) + 1 if role in source.columns else None for role in ROLES]
    plain = """CASE WHEN parts[{0}][1] = '"' THEN replace(parts[{0}][2:-2], '""', '"') ELSE parts[{0}] END"""
    fields = ["NULL" if place is None else plain.format(place) for place in places]
    return f"""
        SELECT line, text, CASE WHEN len(parts) = {len(source.names)} THEN [{", ".join(fields)}] END AS f
        FROM (
            SELECT line, text, {_parts(source)} AS parts
            FROM (
                SELECT line, replace(replace(text, chr(10), ''), chr(13), '') AS text
                FROM lines WHERE line > {source.header})
            WHERE text != '')"""


def _parts(source: RawFile) -> str:
    """Returns the expression for the list of the fields of a line of CSV."""
    delimiter = sql_text(source.delimiter)
    if source.delimiter == BLANK:
        return r"string_split_regex(trim(text, ' \t'), '[ \t]+')".replace(r"\t", "\t")
    unquoted = f"string_split(text, {delimiter})"
    if len(source.delimiter) > 1:
        return unquoted
    mark = re.escape(source.delimiter)
    quoted = sql_text(f'{mark}("(?:[^"]|"")*"|[^{mark}]*)')
    quoted = f"regexp_extract_all({delimiter} || text, {quoted}, 1)"
    if source.delimiter == "\t":  # often without any quoting: a quote is a letter, where it does not quote a field
        quoted = f"CASE WHEN len({quoted}) = {len(source.names)} THEN {quoted} ELSE {unquoted} END"
    return f"CASE WHEN contains(text, '\"') THEN {quoted} ELSE {unquoted} END"


def _check(database: duckdb.DuckDBPyConnection, sources: Sequence[RawFile], number: int, strict: bool) -> None:
    """Logs the broken records of a file, or raises UserError for the first if `strict`."""
    source = sources[number]
    ((read, broken),) = database.execute(
        "SELECT count(*), count(problem) FROM records WHERE file = ?", [number]
    ).fetchall()
    if not broken:
        return
    first = database.execute(
        "SELECT line, problem, value FROM records WHERE file = ? AND problem IS NOT NULL ORDER BY line LIMIT ?",
        [number, SHOWN],
    ).fetchall()
    said = [f"{source.path}, line {line}: {_said(source, problem, value)}" for line, problem, value in first]
    if strict:
        raise UserError(f"{said[0]}; {broken:,} of {read:,} records are broken, which --strict refuses")
    logger.warning(f"{source.path}: {broken:,} of {read:,} records are broken and left out, the first of them:")
    for line in said:
        logger.warning(f"  {line}")


def _said(source: RawFile, problem: str, value: str | None) -> str:
    if problem == "line":
        fault = (
            "is no JSON object"
            if source.form == "json"
            else f"has not the {len(source.names)} fields {', '.join(source.names)}"
        )
        return f"{value.strip()[:60]!r} {fault}"
    field = f"field {source.columns[problem]}"
    if not value:
        return f"{field} is missing"
    return f"{field}: {value[:60]!r} is " + {"timestamp": "no number and no date", "rating": "no number"}.get(
        problem, "not UTF-8"
    )


def _ordered(database: duckdb.DuckDBPyConnection, min_rating: float | None) -> Records:
    kept = "problem IS NULL" + (
        f" AND (rating IS NULL OR rating >= {float(min_rating)})" if min_rating is not None else ""
    )
    ids = {}
    for role in ("user", "item"):
        database.execute(
            f"CREATE TABLE {role}s AS SELECT raw, CAST(row_number() OVER (ORDER BY raw) - 1 AS INT) AS number"
            f" FROM (SELECT DISTINCT {role} AS raw FROM records WHERE {kept})"
        )
        ids[role] = database.execute(f"SELECT raw FROM {role}s ORDER BY number").fetchnumpy()["raw"]
    columns = database.execute(
        f"""SELECT users.number AS user, items.number AS item, time AS timestamp, coalesce(rating, 'nan') AS rating,
            file
        FROM records JOIN users ON user = users.raw JOIN items ON item = items.raw WHERE {kept}
        ORDER BY time, users.number, items.number, rating"""
    ).fetchnumpy()
    return Records(*(np.asarray(columns[name]) for name in COLUMNS), np.asarray(ids["user"]), np.asarray(ids["item"]))
