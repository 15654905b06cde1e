"""Times of raw interactions: how they are read, in SQL of duckdb, and what are none."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from genrec.runtime.errors import UserError

if TYPE_CHECKING:
    import duckdb

    from genrec.raw.raw_files import RawFile

ORDER = "order"  # a time format: numbers that order interactions, and are no times
# Dates that are read without being asked to, beside what duckdb casts: Goodreads', Steam's, Amazon's of 2014.
TIME_FORMATS = ("%a %b %d %H:%M:%S %z %Y", "Posted %B %d, %Y.", "%B %d, %Y", "%m %d, %Y")


def time_expression(time_format: str | None) -> str:
    """Returns the expression for microseconds since 1970 of f[3], or of `number` where it is one."""
    if time_format == ORDER:
        return "CAST(round(number * 1e6) AS BIGINT)"
    if time_format is not None:
        return f"epoch_us(try_strptime(f[3], {sql_text(time_format)}))"
    dates = ", ".join(f"epoch_us(try_strptime(f[3], {sql_text(each)}))" for each in TIME_FORMATS)
    # YYYYMMDD; else seconds, milliseconds, microseconds or nanoseconds, whichever is a time between 1970 and 5138.
    return f"""CASE WHEN number IS NULL THEN coalesce(epoch_us(TRY_CAST(f[3] AS TIMESTAMPTZ)), {dates})
        WHEN number BETWEEN 19000101 AND 21001231 AND try_strptime(CAST(CAST(number AS BIGINT) AS VARCHAR), '%Y%m%d')
            IS NOT NULL THEN epoch_us(try_strptime(CAST(CAST(number AS BIGINT) AS VARCHAR), '%Y%m%d'))
        WHEN abs(number) < 1e11 THEN CAST(round(number * 1e6) AS BIGINT)
        WHEN abs(number) < 1e14 THEN CAST(round(number * 1e3) AS BIGINT)
        WHEN abs(number) < 1e17 THEN CAST(round(number) AS BIGINT)
        WHEN abs(number) < 1e19 THEN CAST(round(number / 1e3) AS BIGINT) END"""


def check_times(database: duckdb.DuckDBPyConnection, number: int, source: RawFile) -> None:
    """Raises UserError if most times of a file fall in 1970, as where they are not in a unit that is known, or if all
    are broken, with what they may be."""
    if not source.timed:
        return
    (read, broken, early, example), = database.execute(
        "SELECT count(*), count(*) FILTER (problem = 'timestamp'),"
        "count(*) FILTER (time >= 0 AND time < 31536000000000),"
        "any_value(value) FILTER (problem = 'timestamp') FROM records WHERE file = ?", [number]
    ).fetchall()  # fmt: skip
    if read and broken == read:
        raise UserError(
            f"{source.path}: no {source.columns['timestamp']} is a time, such as {example!r}; pass --time_format "
            f"{guess_time_format(example)}"
        )
    if source.time_format != ORDER and 2 * early > read:
        raise UserError(
            f"{source.path}: {early:,} of {read:,} times fall in 1970: {source.columns['timestamp']} has no seconds, "
            "milliseconds, microseconds or nanoseconds since then; name another column with --timestamp, or "
            f"pass --time_format {ORDER} if they only order the interactions"
        )


def guess_time_format(example: str) -> str:
    """A format of strptime that may fit a date, to be shown to the user."""
    found = re.fullmatch(r"(\d{1,2})([/.-])(\d{1,2})\2(\d{4})( \d{1,2}:\d\d)?(:\d\d)?( ?[AP]M)?", example or "")
    if found is None:
        return "FORMAT, as of strptime, such as '%d/%m/%Y %H:%M'"
    first, mark, second, _, clock, seconds, half = found.groups()
    hour = "" if clock is None else f" %{'I' if half else 'H'}:%M{':%S' if seconds else ''}{' %p' if half else ''}"
    day_first, month_first = (f"'{a}{mark}{b}{mark}%Y{hour}'" for a, b in (("%d", "%m"), ("%m", "%d")))
    if int(first) > 12:
        return day_first
    return month_first if int(second) > 12 else f"{day_first} or {month_first}"


def doubled(text: str, quote: str) -> str:
    return text.replace(quote, 2 * quote)


def sql_text(text: str) -> str:
    return f"'{doubled(text, chr(39))}'"
