"""Amazon Reviews 2023, absolute timestamps (5core_timestamp_w_his), as SpecGR reads it.

    bash script/specgr_process_data.sh
    python -m specgr.process_data --category Video_Games --output data/Video_Games

Writes train, valid and test.parquet (user, history, item: numbers; see `specgr.data`), items.parquet (item; raw_id, its
parent_asin; text) and facts.json; what is there of the same flags is kept, and --overwrite replaces these files
alone. Items are numbered by first appearance, so those of training come first.

The files are read by name, from the hub or from a folder of the same layout, since `datasets` no longer runs the
repository's loading script.
"""

import html
import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from genrec.data.splits import SPLITS
from genrec.runtime.artefacts import FACTS, already_done, hold, make_facts
from genrec.runtime.cli import run
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path, check_output, write_json

if TYPE_CHECKING:
    import datasets

STAGE = "specgr.process_data"
HUB = "hf://datasets/McAuley-Lab/Amazon-Reviews-2023"
COLUMNS = {"user_id": "string", "parent_asin": "string", "rating": "float64", "timestamp": "int64", "history": "string"}
TEXTS = ("title", "features", "categories", "description")
logger = logging.getLogger(__name__)


def main(category: str, output: str, source: str = HUB, overwrite: bool = False) -> None:
    source = str(Path(source).resolve()) if Path(source).is_dir() else source
    arguments, folder = {"category": category, "source": source}, Path(output)
    if not overwrite and (folder / FACTS).is_file() and already_done(folder, folder, STAGE, arguments, overwrite):
        return
    empty = folder.is_dir() and not any(folder.glob("[!.]*"))  # but for what a killed run was writing
    if folder.exists() and not overwrite and not empty:
        raise UserError(f"{folder}: is there already; choose another --output, or pass --overwrite")
    check_output(folder)
    hold(folder)

    import datasets

    with network(source):
        interactions = load_interactions(source, category)
        numbers = number_items(interactions)
        texts = load_texts(source, category, numbers.keys())
    users = number_users(interactions)
    items = {"item": list(numbers.values()), "raw_id": list(numbers), "text": [texts.get(a, "") for a in numbers]}
    tables = {split: renamed(rows, split, users, numbers) for split, rows in interactions.items()}
    results = {
        "users": len(users), "items": len(numbers), "items_without_text": len(numbers) - len(texts),
        "items_seen": len(set(interactions["train"]["parent_asin"])),
        "interactions": {split: len(rows) for split, rows in interactions.items()},
    }  # fmt: skip
    save(folder, tables | {"items": datasets.Dataset.from_dict(items)}, make_facts(STAGE, arguments, results=results))
    print(f"{folder}: " + ", ".join(f"{name} {value}" for name, value in results.items()))


def save(folder: Path, tables: "dict[str, datasets.Dataset]", facts: dict) -> None:
    """Write NAME.parquet and the facts into the folder, beside what is there of others.

    All are written before the first takes its place; old facts go before, new ones come last, so half is never done.
    """
    with ExitStack() as last_first:
        write_json(last_first.enter_context(atomic_path(folder / FACTS)), facts)
        for name, table in tables.items():
            table.to_parquet(last_first.enter_context(atomic_path(folder / f"{name}.parquet")))
        (folder / FACTS).unlink(missing_ok=True)


@contextmanager
def network(source: str) -> Iterator[None]:
    """Raises UserError for an exception that comes from an OSError, whichever HTTP library wraps it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = error
        while cause.__context__:
            cause = cause.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(f"{source}: cannot be read ({error}); without a network, download the data set elsewhere and "
                        "pass its folder: --source FOLDER, or SOURCE=FOLDER of the script") from error  # fmt: skip


def load_interactions(source: str, category: str) -> "datasets.DatasetDict":
    """The three splits with COLUMNS. Raises UserError for a file or column that is missing, or a split without rows."""
    import datasets

    files = {split: f"{source}/benchmark/5core/timestamp_w_his/{category}.{split}.csv" for split in SPLITS}
    features = datasets.Features({name: datasets.Value(kind) for name, kind in COLUMNS.items()})
    try:
        return datasets.load_dataset("csv", data_files=files, features=features, keep_default_na=False)
    except FileNotFoundError as error:
        raise UserError(f"{files['train']}: the file, or one beside it, is not there ({error}); check --category and "
                        "--source") from error  # fmt: skip
    except datasets.exceptions.DatasetGenerationError as error:
        raise UserError(f"{files['train']}, or a split beside it: not a CSV file with the columns {', '.join(COLUMNS)} "
                        f"({error.__cause__})") from error  # fmt: skip
    except ValueError as error:
        raise UserError(f"{files['train']}, or a split beside it: cannot be read, or has no row ({error})") from error


def number_items(interactions: "datasets.DatasetDict") -> dict[str, int]:
    """parent_asin -> number, by first appearance: split by split, within one by timestamp, then by row."""
    import numpy as np
    import pandas as pd

    ordered = []
    for split in SPLITS:
        rows = interactions[split].select_columns(["parent_asin", "timestamp"]).to_pandas()
        ordered.append(rows["parent_asin"].to_numpy()[np.argsort(rows["timestamp"], kind="stable")])
    return {asin: number for number, asin in enumerate(pd.unique(np.concatenate(ordered)))}


def number_users(interactions: "datasets.DatasetDict") -> dict[str, int]:
    """user_id -> number, by first appearance in the files."""
    import numpy as np
    import pandas as pd

    together = np.concatenate([interactions[split].to_pandas()["user_id"].to_numpy() for split in SPLITS])
    return {user: number for number, user in enumerate(pd.unique(together))}


def renamed(rows: "datasets.Dataset", split: str, users: dict[str, int], numbers: dict[str, int]) -> "datasets.Dataset":
    """The rows in numbers: user, history, item. Raises UserError that names the row of an unknown item in a history."""

    import datasets

    def convert(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        histories = [(history or "").split() for history in batch["history"]]
        for row, history in zip(indices, histories, strict=True):
            unknown = [asin for asin in history if asin not in numbers]
            if unknown:
                raise UserError(
                    f"{split}, row {row + 1}: the history names {unknown[0]}, of which there is no interaction"
                )
        return {
            "user": [users[user] for user in batch["user_id"]],
            "history": [[numbers[asin] for asin in history] for history in histories],
            "item": [numbers[asin] for asin in batch["parent_asin"]],
        }

    kinds = {
        "user": datasets.Value("int64"),
        "history": datasets.List(datasets.Value("int64")),
        "item": datasets.Value("int64"),
    }
    return rows.map(
        convert, batched=True, with_indices=True, remove_columns=rows.column_names, features=datasets.Features(kinds)
    )


def load_texts(source: str, category: str, wanted: Iterable[str]) -> dict[str, str]:
    """parent_asin -> title, features, categories and description, for those wanted that have metadata.

    The lines are JSON objects whose other fields change their type from line to line, so they are read as text.
    """
    import datasets

    file, wanted, texts, number = f"{source}/raw/meta_categories/meta_{category}.jsonl", set(wanted), {}, 0
    try:
        lines = datasets.load_dataset("text", data_files=file, split="train", streaming=True)
        for line in lines:
            number += 1
            item = json.loads(line["text"])
            if item["parent_asin"] in wanted:
                texts[item["parent_asin"]] = text_of(item)
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; check --category and --source") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file}, line {number}: not a JSON object with parent_asin ({error!r})") from error
    if len(texts) < len(wanted):
        logger.warning(
            f"{file}: {len(wanted) - len(texts)} of {len(wanted)} items have no metadata; their text is empty"
        )
    return texts


def text_of(item: dict) -> str:
    """One line: each of TEXTS as a sentence, without markup."""
    parts = []
    for name in TEXTS:
        value = item.get(name) or ""
        joined = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        plain = " ".join(re.sub(r"<[^>]+>", " ", html.unescape(joined)).split())
        parts += [plain.rstrip(".") + "."] if plain else []
    return " ".join(parts)


if __name__ == "__main__":
    run(main)
