r"""From raw reviews to the folder of splits that the pipeline runs on.

    INPUT=reviews_Beauty_5.json.gz DATASET=my-beauty bash script/process_data.sh
    atspeed process-data --input 'ratings/*.csv' --output data/mine --user uid --item sku \
        --timestamp when

Reads Amazon reviews (2014, 2018, 2023) and any JSON lines, CSV or Parquet, plain or gz. It takes a minute or so; when
interrupted it leaves nothing: run it again.
"""

import gc
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import duckdb

from genrec.data.split_report import count_splits, split_table
from genrec.data.splits import SPLITS
from genrec.raw.process import Processed, ProcessingSettings, moment, occurring, process
from genrec.raw.raw_files import FORMATS, find_files, inspect
from genrec.raw.records import RecordsRead, read_records
from genrec.runtime.artefacts import FACTS, hold, make_facts, read_facts, write_facts
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path, check_ours, check_output, file_sha256

logger = logging.getLogger(__name__)

STAGE = "process_data"


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """A data set is millions of lists and no cycles: looking for some doubles the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@_without_garbage_collection()
def main(
    input: str,
    output: str,
    user: str | None = None,
    item: str | None = None,
    timestamp: str | None = None,
    rating: str | None = None,
    columns: tuple[str, ...] = (),
    format: str | None = None,
    min_rating: float | None = 4.0,
    user_core: int = 0,
    item_core: int = 0,
    ratios: tuple[float, ...] = (8.0, 1.0, 1.0),
    min_train_items: int = 2,
    keep_duplicates: bool = False,
    strict: bool = False,
    overwrite: bool = False,
) -> None:
    arguments = {k: v for k, v in locals().items() if k not in ("input", "output", "overwrite")}
    folder, files = Path(output), find_files(input)
    settings = ProcessingSettings(user_core, item_core, ratios, min_train_items, keep_duplicates)
    settings.check()
    if format not in (None, *FORMATS):
        raise UserError(f"--format {format}: choose from {', '.join(FORMATS)}; without it the content decides")
    named = {"user": user, "item": item, "timestamp": timestamp, "rating": rating}
    sources = [inspect(path, format, named, columns) for path in files]
    arguments = {"input": [f"{path.name} {file_sha256(path)}" for path in files], **arguments}
    if _done(folder, files, arguments, overwrite):
        return
    hold(folder)
    for source in sources:
        known = ", ".join(f"{role} = {column}" for role, column in source.columns.items())
        logger.info(f"{source.path}: {source.form}, {known}")

    with atomic_path(folder) as partial:
        work = partial / "work"
        work.mkdir(parents=True)
        reading = read_records(sources, min_rating, strict, work)
        shutil.rmtree(work)
        processed = process(reading.records, settings)
        splits = processed.splits()
        processed.save(splits, partial)
        counts, funnel = count_splits(splits), _funnel(reading, processed)
        facts = make_facts(
            STAGE, arguments, counts=funnel, cuts=[cut / 1e6 for cut in processed.cuts],
            splits={name: asdict(of) for name, of in counts.items()}, duckdb=duckdb.__version__,
        )  # fmt: skip
        write_facts(partial, facts)
    print("\n" + "\n".join(f"{value:>14,}  {name}" for name, value in funnel.items()))
    print(f"\nvalidation from {moment(processed.cuts[0])}, test from {moment(processed.cuts[1])}\n")
    print(f"{split_table(counts)}\n\nwritten to {folder}")


def _funnel(reading: RecordsRead, processed: Processed) -> dict[str, int]:
    """What became of the records, step by step."""
    kept, left = processed.kept, processed.records
    users, items = (len(occurring(ids)) for ids in (kept.user, kept.item))
    return {
        "records read": reading.read,
        "broken": reading.broken,
        "with a rating below the least": reading.below,
        "duplicates of a user and an item": processed.duplicates,
        "outside the core": processed.outside_core,
        "interactions": len(kept),
        "of users": users,
        "on items": items,
        "users dropped for want of training items": users - len(left.users),
        "interactions left": len(left),
        "users left": len(left.users),
        "items left": len(left.items),
        **{f"in {name}": int((processed.split == index).sum()) for index, name in enumerate(SPLITS)},
    }


def _done(folder: Path, files: list[Path], arguments: dict, overwrite: bool) -> bool:
    """Whether `folder` holds this already. Raises UserError if it holds anything else that would be lost."""
    if overwrite or not folder.exists():
        check_output(folder)
    if not folder.exists():
        return False
    if not (folder / FACTS).is_file():
        raise UserError(f"{folder}: is there already, and not from this stage; choose another DATASET, or remove it")
    made = read_facts(folder, STAGE, STAGE)["arguments"]
    inside = [path for path in files if folder.resolve() in path.resolve().parents]
    if inside:
        raise UserError(f"--input {inside[0]}: lies in {folder}, which is written as a whole; move it elsewhere")
    if overwrite:
        check_ours(folder)
        return False
    for name, value in _plain(arguments).items():
        if made.get(name) != value:
            raise UserError(
                f"{folder}: was made with --{name} {made.get(name)}, not {value}; choose another DATASET, or pass "
                "--overwrite"
            )
    logger.info(f"{folder}: done already, nothing to do")
    return True


def _plain(arguments: dict) -> dict:
    """As JSON gives them back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}
