r"""Recommend K items to every user of a file, or of a split of a data set: one row a user, in Parquet.

    TARGET_MODEL=output/toy/target INPUT=users.jsonl OUTPUT=lists bash script/recommend.sh
    atspeed recommend --target_model output/toy/target --histories users.parquet --output_dir lists

--histories: JSON lines, CSV or Parquet of user and history (items, oldest first); or --dataset and --split. Writes
shard-….parquet of user, items and scores, in the order of the users, each whole or not at all. Killed at any moment and
started again, it goes on with the shards that are missing; processes take the next one that nobody has. A file of users
is read shard by shard. Lists are those of the target's own beam search, with a draft or without.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from atspeed.benchmark.methods import GAMMA, check_fit
from atspeed.checkpoints.shapes import check_dtype
from atspeed.data.shards import claim_shard, clear_claims
from genrec.data.histories import HistoryFile, Row, rows_of_split
from genrec.runtime.artefacts import already_done, fingerprint, is_done, make_facts, read_facts, write_facts
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path, sha256
from genrec.runtime.progress import progress_bar

if TYPE_CHECKING:
    from atspeed.recommend.recommender import Recommender

STAGE = "recommend"


def main(
    target_model: str,
    output_dir: str,
    draft_model: str | None = None,
    histories: str | None = None,
    dataset: str | None = None,
    data_path: str = "data",
    index: str | None = None,
    split: str = "test",
    raw_ids: str | None = None,
    k: int = 20,
    exclude_seen: bool = False,
    stop_list: str | None = None,
    on_unknown: str = "error",
    batch_size: int = 64,
    shard_size: int = 4096,
    draft_beam_size: int | None = None,
    gamma: int = GAMMA,
    dtype: str = "float32",
    overwrite: bool = False,
) -> None:
    check_dtype(dtype)
    if (histories is None) == (dataset is None):
        raise UserError("give --histories FILE, or --dataset and --split, one of the two")
    if on_unknown not in ("error", "skip"):
        raise UserError(f"--on_unknown {on_unknown}: choose error or skip")
    models = [
        path and fingerprint(read_facts(Path(path), stage, stage))
        for path, stage in ((target_model, "finetune_llama"), (draft_model, "train"))
    ]
    source: HistoryFile | list[Row]
    if histories is not None:
        source = HistoryFile(Path(histories))
        asked = _digest(Path(histories))
    else:
        source = rows_of_split(data_path, str(dataset), index, split)
        asked = sha256(repr(source).encode())[:16]
    output = Path(output_dir)
    arguments = {
        "target": models[0], "draft": models[1], "users": asked, "k": k, "exclude_seen": exclude_seen,
        "stop_list": stop_list and _digest(Path(stop_list)), "raw_ids": raw_ids and _digest(Path(raw_ids)),
        "on_unknown": on_unknown, "shard_size": shard_size, "dtype": dtype,
    }  # fmt: skip
    if is_done(output, output, STAGE, arguments, overwrite):
        return

    from atspeed.processes import this_process
    from atspeed.recommend.recommender import Recommender
    from atspeed.recommend.served import ServedCatalogue

    served, _ = ServedCatalogue.open(target_model, draft_model, raw_ids=raw_ids, stop_list=stop_list)
    check_fit(served.catalogue.without(served.catalogue.identifiers.keys() - served.items), "k", k)

    def problem(history: list) -> str | None:
        unknown = served.unknown(history)
        if on_unknown == "error" and unknown is not None:
            return f"item {unknown!r} is not in the catalogue; pass --on_unknown skip to leave such items out"
        if on_unknown == "error" and not history:
            return "has no item; pass --on_unknown skip, and such users get an empty list"
        return None

    users = source.check(problem) if isinstance(source, HistoryFile) else len(source)
    state = this_process()
    with state.main_process_first():
        if already_done(output, output, STAGE, arguments, overwrite):
            return
        if state.is_main_process:
            clear_claims(output)
    state.wait_for_everyone()
    recommender = Recommender.from_pretrained(
        target_model, draft_model, raw_ids=raw_ids, stop_list=stop_list, dtype=dtype, device=state.device,
        batch_size=batch_size, draft_width=draft_beam_size, gamma=gamma,
    )  # fmt: skip
    n_shards = -(-users // shard_size)
    bar = progress_bar(users, "recommend", "user")
    for shard, rows in enumerate(_shards(source, shard_size)):
        path = output / f"shard-{shard:05d}-of-{n_shards:05d}.parquet"
        if not path.is_file() and claim_shard(path):
            _write(path, recommender, rows, k, exclude_seen, on_unknown, bar.update)
        else:
            bar.update(len(rows))
    bar.close()
    state.wait_for_everyone()
    if state.is_main_process:
        clear_claims(output)
        write_facts(output, make_facts(STAGE, arguments, users=users, shards=n_shards))
        print(f"{output}: {users} users, {k} items each, {n_shards} files\n{recommender.report()}")


def _shards(source: HistoryFile | list[Row], size: int) -> Iterator[list[Row]]:
    rows = source.rows() if isinstance(source, HistoryFile) else iter(source)
    while shard := list(islice(rows, size)):
        yield shard


def _write(
    path: Path, recommender: Recommender, rows: list[Row], k: int, exclude_seen: bool, on_unknown: str,
    advance: Callable[[int], object],
) -> None:  # fmt: skip
    """The lists of these users as one file. A user without a known item has an empty one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists: list[tuple[list, list]] = [([], [])] * len(rows)
    able = [number for number, (_, history) in enumerate(rows) if recommender.knows(history)]
    step = 16 * recommender.batch_size  # so that batches hold prompts of like length, and the bar moves
    for start in range(0, len(able), step):
        chosen = able[start : start + step]
        found = recommender.recommend(
            [rows[number][1] for number in chosen], k, exclude_seen=exclude_seen, on_unknown=on_unknown
        )
        for number, each in zip(chosen, found, strict=True):
            lists[number] = each.items, each.scores
        advance(len(chosen))
    advance(len(rows) - len(able))
    users = [user for user, _ in rows]
    whole = all(isinstance(user, int) for user in users)
    item = pa.int64() if recommender.served.raw_ids is None else pa.string()
    table = pa.table(
        {
            "user": pa.array(users if whole else list(map(str, users))),
            "items": pa.array([items for items, _ in lists], pa.list_(item)),
            "scores": pa.array([scores for _, scores in lists], pa.list_(pa.float32())),
        }
    )
    with atomic_path(path) as partial:
        pq.write_table(table, partial)


def _digest(path: Path) -> str:
    """A hash of a file's contents."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:16]
