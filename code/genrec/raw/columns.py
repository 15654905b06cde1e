"""Which columns of a raw file are user, item, time, rating and history, by their names, or by their values."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from genrec.runtime.errors import UserError

ROLES = ("user", "item", "timestamp", "rating", "history")
# Role -> known column names, best first (2023: parent_asin is the product, asin its variant; of two times, the finer).
KNOWN = {
    "user": (
        "user", "user_id", "userid", "reviewerid", "uid", "customer_id", "username", "session_id", "sessionid",
        "visitorid", "visitor_id", "member_id",
    ),
    "item": (
        "item", "item_id", "itemid", "parent_asin", "asin", "product_id", "productid", "movieid", "movie_id",
        "business_id", "video_id", "videoid", "book_id", "article_id", "artistid", "artist_id", "track_id", "song_id",
        "news_id", "gmap_id", "iid", "sku",
    ),
    "timestamp": (
        "timestamp", "unixreviewtime", "time_ms", "unix_time", "unix_timestamp", "ts", "time", "event_time", "datetime",
        "created_at", "t_dat", "date", "date_added", "review_date", "day",
    ),
    "rating": ("rating", "overall", "score", "stars"),
    "history": ("history", "item_id_list", "history_item_id", "history_ids", "item_seq"),
}  # fmt: skip
OPTIONAL = ("rating", "history")
_TYPE = re.compile(r":(token|float|token_seq|float_seq)$")  # behind a name, in RecBole's files


def is_header(row: Sequence[str], wanted: dict[str, str | None]) -> bool:
    """Whether a line names a column that is known, or that the user has named."""
    plain = {plain_name(name) for name in row}
    named = {name for name in wanted.values() if name is not None}
    return bool(named & set(row) or plain & {name for names in KNOWN.values() for name in names})


def plain_name(name: str) -> str:
    """A column's name in lower case, without RecBole's type."""
    return _TYPE.sub("", name.strip().lower())


def guess_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Names for the columns of lines without a header, by their values: times, ratings, Amazon's ids."""
    width = min(map(len, rows))
    columns = [[row[place].strip() for row in rows] for place in range(width)]
    names = [f"c{place + 1}" for place in range(width)]
    left = list(range(width))

    def take(role: str, fits: Callable[[str], bool], last: bool = False) -> None:
        place = next((place for place in (left[::-1] if last else left) if all(map(fits, columns[place]))), None)
        if place is not None:
            names[place] = role
            left.remove(place)

    take(
        "timestamp", lambda value: re.fullmatch(r"1?\d{9}(\d{3})?(\d{3})?(\.\d+)?|\d{4}-\d\d-\d\d.*", value) is not None
    )
    take("rating", lambda value: re.fullmatch(r"\d(\.\d+)?|10(\.0+)?", value) is not None, last=True)
    take("user", lambda value: re.fullmatch(r"A[0-9A-Z]{9,20}", value) is not None)
    take("item", lambda value: re.fullmatch(r"B[0-9A-Z]{9}|\d{9}[\dX]", value) is not None)
    for role in ("user", "item"):
        if role not in names and left:
            names[left.pop(0)] = role
    return names


def choose_columns(
    path: Path, names: Sequence[str], wanted: dict[str, str | None], untimed: bool = False
) -> dict[str, str]:
    """Returns role -> column."""
    plain, chosen = {plain_name(name): name for name in reversed(names)}, {}
    optional = (*OPTIONAL, "timestamp") if untimed else OPTIONAL
    for role, known in KNOWN.items():
        name = wanted.get(role)
        if name is None:
            name = next((plain[guess] for guess in known if guess in plain), None)
        elif name not in names:
            name = plain.get(name.lower(), name)
        if name in names:
            chosen[role] = name
        elif wanted.get(role) is not None or role not in optional:
            said = f"--{role} {name}: no such column" if name else f"no column is known as {role}; pass --{role} NAME"
            more = ", or --split leave_one_out where lines stand in order" if role == "timestamp" and not name else ""
            raise UserError(f"{path}: {said}{more}; the columns are {', '.join(map(str, names[:40]))}")
    return chosen
