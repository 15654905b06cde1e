"""Formats of well-known data sets, by name: what cannot be told from their files."""

from __future__ import annotations

from dataclasses import dataclass

from genrec.runtime.errors import UserError


@dataclass(frozen=True)
class Preset:
    """How to read a data set's file."""

    file: str  # its name in the release
    form: str  # one of FORMATS
    columns: tuple[str, ...] = ()  # of a CSV without a header, in order
    delimiter: str | None = None  # None: told from the file
    roles: tuple[tuple[str, str], ...] = ()  # (role, column) where the names are not known
    time_format: str | None = None  # see `times`; None: told from the values
    expand: str | None = None  # a line holds several interactions: see `rewriting`


_MOVIELENS = Preset("ratings.csv", "csv", roles=(("item", "movieId"),))
_DOUBLE_COLON = Preset("ratings.dat", "csv", ("user", "item", "rating", "timestamp"), "::")
PRESETS = {
    "ml-100k": Preset("u.data", "csv", ("user", "item", "rating", "timestamp"), "\t"),
    "ml-1m": _DOUBLE_COLON,
    "ml-10m": _DOUBLE_COLON,
    "ml-20m": _MOVIELENS,
    "ml-25m": _MOVIELENS,
    "ml-32m": _MOVIELENS,
    "amazon-2014-ratings": Preset("ratings_NAME.csv", "csv", ("user", "item", "rating", "timestamp"), ","),
    "amazon-2018-ratings": Preset("NAME.csv", "csv", ("item", "user", "rating", "timestamp"), ","),
    "gowalla": Preset(
        "loc-gowalla_totalCheckins.txt", "csv", ("user", "timestamp", "latitude", "longitude", "item"), "\t"
    ),
    "brightkite": Preset(
        "loc-brightkite_totalCheckins.txt", "csv", ("user", "timestamp", "latitude", "longitude", "item"), "\t"
    ),
    "lastfm-1k": Preset(
        "userid-timestamp-artid-artname-traid-traname.tsv", "csv",
        ("user", "timestamp", "item", "artist", "track_id", "track"), "\t",
    ),
    "steam": Preset("steam_reviews.json.gz", "json", roles=(("user", "username"), ("item", "product_id"),
                                                           ("timestamp", "date"))),
    "steam-australian": Preset("australian_user_reviews.json.gz", "json", expand="bundle",
                               roles=(("item", "item_id"), ("timestamp", "posted"))),
    "goodreads": Preset("goodreads_interactions_NAME.json.gz", "json",
                        roles=(("item", "book_id"), ("timestamp", "date_added"))),
    "yelp": Preset("yelp_academic_dataset_review.json", "json",
                   roles=(("item", "business_id"), ("timestamp", "date"), ("rating", "stars"))),
    "taobao": Preset("UserBehavior.csv", "csv", ("user", "item", "category", "behavior", "timestamp"), ","),
    "yoochoose": Preset("yoochoose-clicks.dat", "csv", ("user", "timestamp", "item", "category"), ","),
    "hm": Preset("transactions_train.csv", "csv",
                 roles=(("user", "customer_id"), ("item", "article_id"), ("timestamp", "t_dat"))),
    "kuairec": Preset("big_matrix.csv", "csv", roles=(("item", "video_id"), ("timestamp", "timestamp"))),
    "kuairand": Preset("log_standard_NAME.csv", "csv", roles=(("item", "video_id"), ("timestamp", "time_ms"))),
    "mind": Preset("behaviors.tsv", "csv", ("impression", "user", "timestamp", "history", "impressions"), "\t",
                   time_format="%m/%d/%Y %I:%M:%S %p", expand="impressions"),
}  # fmt: skip


def find_preset(name: str) -> Preset:
    """Returns the preset of a data set. Raises UserError for an unknown one."""
    if name not in PRESETS:
        raise UserError(f"--format {name}: choose from json, csv, parquet, {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
