r"""From raw interactions to the folder of splits that the pipeline runs on.

    INPUT=reviews_Beauty_5.json.gz DATASET=my-beauty bash script/process_data.sh
    SPLIT=leave_one_out USER_CORE=5 ITEM_CORE=5 INPUT=ratings.dat FORMAT=ml-1m DATASET=ml-1m bash script/process_data.sh
    atspeed process-data --input 'ratings/*.csv' --output data/mine --user uid --item sku --timestamp when

Reads Amazon reviews (2014, 2018, 2023), LC-Rec's NAME.inter.json, RecBole's files, sequences of items, well-known data
sets by --format NAME, and any JSON lines, CSV or Parquet, plain or gz. --split: by time, 8:1:1, as AtSpeed; each user's
last two items, as most of the field; or as the files are named (NAME.train.inter, valid/NAME.csv). Left out, it is what
the files say: given, if they are named so; leave_one_out, if they have no times; time. Files of samples (a history and
the item that followed) are kept as such. It takes a minute or so; when interrupted it leaves nothing: run it again.
"""

import gc
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import duckdb
import numpy as np

from genrec.data.catalogue import Catalogue
from genrec.data.dataset import check_index
from genrec.data.split_report import count_splits, split_table
from genrec.data.splits import INTER, SPLITS, load_samples
from genrec.identifiers.item_texts import read_titles
from genrec.raw.given_samples import number_samples
from genrec.raw.process import (
    GIVEN,
    LEAVE_ONE_OUT,
    TIME,
    Processed,
    ProcessingSettings,
    moment,
    occurring,
    process,
)
from genrec.raw.raw_files import RawFile, find_files, inspect, part_of
from genrec.raw.records import RecordsRead, read_raw_samples, read_records
from genrec.runtime.artefacts import FACTS, hold, make_facts, read_facts, write_facts
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path, check_ours, check_output, file_sha256
from genrec.runtime.flags import Range, convert

logger = logging.getLogger(__name__)

STAGE = "process_data"
AS_SPLIT = "split"  # of --min_rating: as is the custom with the split


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
    time_format: str | None = None,
    split: str | None = None,
    min_rating: str | None = AS_SPLIT,
    user_core: int = 0,
    item_core: int = 0,
    ratios: tuple[float, ...] = (8.0, 1.0, 1.0),
    min_train_items: int | None = None,
    keep_duplicates: bool | None = None,
    index: str | None = None,
    items: str | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> None:
    arguments = {k: v for k, v in locals().items() if k not in ("input", "output", "overwrite")}
    folder, files = Path(output), find_files(input)
    named = {"user": user, "item": item, "timestamp": timestamp, "rating": rating}
    untimed = split in (LEAVE_ONE_OUT, GIVEN) or {part_of(path) for path in files} == set(SPLITS)
    sources = [inspect(path, format, named, columns, untimed) for path in files]
    if time_format is not None:
        sources = [replace(source, time_format=time_format) for source in sources]
    split = choose_split(split, sources)
    by_time = split == TIME
    settings = ProcessingSettings(
        split, user_core, item_core, ratios, (2 if by_time else 1) if min_train_items is None else min_train_items,
        not by_time if keep_duplicates is None else keep_duplicates,
    )  # fmt: skip
    settings.check()
    least = _min_rating(min_rating, by_time)
    index_file, items_file = _beside(files[0], index, ".index.json"), _beside(files[0], items, ".item.json")
    catalogue = None if index_file is None else Catalogue.load(index_file)
    n_items = None if catalogue is None else max(catalogue.identifiers) + 1
    also = [path for path in (index_file, items_file) if path is not None]
    arguments |= {"split": split, "input": [f"{path.name} {file_sha256(path)}" for path in [*files, *also]]}
    if _done(folder, files, arguments, overwrite):
        return
    hold(folder)
    for source in sources:
        known = ", ".join(f"{role} = {column}" for role, column in source.columns.items())
        logger.info(f"{source.path}: {source.form}, {known}" + (f"; {source.part}" if split == GIVEN else ""))

    parts = [source.part for source in sources]
    with atomic_path(folder) as partial:
        work = partial / "work"
        work.mkdir(parents=True)
        if any("history" in source.columns for source in sources) and split == GIVEN:
            given = number_samples(read_raw_samples(sources, strict, work), parts, n_items)
            shutil.rmtree(work)
            given.save(partial, _titles(items_file, given.items))
            funnel, said = {f"samples of {name}": len(rows) for name, rows in given.rows.items()}, ""
            cuts, splits = None, load_samples(partial)
        else:
            reading = read_records(sources, least, strict, work)
            shutil.rmtree(work)
            processed = process(reading.records, settings, parts, n_items)
            splits, cuts = processed.splits(), processed.cuts
            timed = all(source.timed for source in sources)
            processed.save(splits, partial, timed, _titles(items_file, processed.records.items))
            funnel = _funnel(reading, processed)
            said = "" if cuts is None else f"\nvalidation from {moment(cuts[0])}, test from {moment(cuts[1])}\n"
        counts = count_splits(splits)
        if catalogue is not None:
            check_index(Path(str(index_file)), catalogue, splits.items(), folder)
            catalogue.save(partial / f"{folder.name}.index.json")
        facts = make_facts(
            STAGE, arguments, counts=funnel, cuts=cuts and [cut / 1e6 for cut in cuts],
            splits={name: asdict(of) for name, of in counts.items()}, duckdb=duckdb.__version__,
        )  # fmt: skip
        write_facts(partial, facts)
    print("\n" + "\n".join(f"{value:>14,}  {name}" for name, value in funnel.items()))
    print(said)
    print(f"{split_table(counts)}\n\nwritten to {folder}: split {split}")


def choose_split(split: str | None, sources: Sequence[RawFile]) -> str:
    """How the interactions are split, if it is not said. Raises UserError for a split that the files do not have."""
    parts = {source.part for source in sources}
    if split == GIVEN and parts != set(SPLITS):
        unnamed = [source.path.name for source in sources if source.part is None]
        raise UserError(
            f"--split {GIVEN}: the names of the files must say train, valid and test, as in NAME.train.inter or "
            f"valid/NAME.csv; "
            + (f"{unnamed[0]} does not" if unnamed else f"there is {', '.join(map(str, parts))} alone")
        )
    timed = all(source.timed for source in sources)
    if split == TIME and not timed:
        raise UserError(f"--split {TIME}: the interactions have no times; pass --split {LEAVE_ONE_OUT}")
    if split is not None:
        return split
    if parts == set(SPLITS):
        logger.info("the files are named train, valid and test, and stay so (--split time cuts them anew)")
        return GIVEN
    return TIME if timed else LEAVE_ONE_OUT


def _min_rating(text: str | None, by_time: bool) -> float | None:
    """The least rating; by default 4 with a cut by time, as in AtSpeed, and any otherwise, as is the custom."""
    if text == AS_SPLIT:
        return 4.0 if by_time else None
    least = convert("--min_rating", text, float | None)
    assert least is None or isinstance(least, float)
    if least is not None:
        Range(-math.inf).check("--min_rating", least)
    return least


def _beside(file: Path, given: str | None, ending: str) -> Path | None:
    """A file that is given, or that stands beside LC-Rec's interactions: NAME.index.json beside NAME.inter.json."""
    if given is not None:
        return Path(given)
    beside = file.with_name(file.name.removesuffix(INTER) + ending)
    return beside if file.name.endswith(INTER) and beside.is_file() else None


def _titles(path: Path | None, names: np.ndarray) -> dict[int, str]:
    return {} if path is None else read_titles(path, {raw: number for number, raw in enumerate(names)})


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
