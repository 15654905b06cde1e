"""Lists for all users of a file or a split, as files of Parquet, each whole or not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from atspeed.benchmark.methods import check_fit
from atspeed.checkpoints.shapes import check_dtype
from atspeed.recommend.recommender_setting import RecommenderSetting
from genrec.data.histories import Row, UserCount, UserSource
from genrec.runtime.artefacts import fingerprint, read_facts
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path, file_sha256

if TYPE_CHECKING:
    from atspeed.recommend.recommender import Recommender

STAGE = "recommend"


@dataclass(frozen=True)
class BulkJob:
    """Whom to recommend what, and where to. Processes and machines may share one: the files are the same whoever writes
    them."""

    setting: RecommenderSetting
    source: UserSource
    output: Path
    k: int
    exclude_seen: bool
    on_unknown: str
    shard_size: int  # users of a file

    def arguments(self) -> dict[str, object]:
        """All that the lists follow from. Raises UserError for a file or folder that is not there."""
        check_dtype(self.setting.dtype)
        if self.on_unknown not in ("error", "skip"):
            raise UserError(f"--on_unknown {self.on_unknown}: choose error or skip")
        models = ((self.setting.target_model, "finetune_llama"), (self.setting.draft_model, "train"))
        target, draft = (path and fingerprint(read_facts(Path(path), stage, stage)) for path, stage in models)
        return {
            "target": target, "draft": draft, "users": self.source.fingerprint()[:16], "k": self.k,
            "exclude_seen": self.exclude_seen, "stop_list": _fingerprint(self.setting.stop_list),
            "raw_ids": _fingerprint(self.setting.raw_ids), "index": _fingerprint(self.setting.index),
            "on_unknown": self.on_unknown, "shard_size": self.shard_size, "dtype": self.setting.dtype,
        }  # fmt: skip

    def absolute(self) -> BulkJob:
        """The same job, for processes that run elsewhere."""
        return replace(
            self, setting=self.setting.absolute(), source=self.source.absolute(), output=self.output.absolute()
        )

    def check(self) -> UserCount:
        """Read all users, once. Raises UserError for the first whose history cannot be read as items."""
        served, _ = self.setting.open()
        check_fit(served.catalogue.without(served.catalogue.identifiers.keys() - served.items), "k", self.k)

        def problem(history: list) -> str | None:
            if self.on_unknown == "skip":
                return None
            if (unknown := served.unknown(history)) is not None:
                return f"item {unknown!r} is not in the catalogue; pass --on_unknown skip to leave such items out"
            return None if history else "has no item; pass --on_unknown skip, and such users get an empty list"

        return self.source.check(problem)

    def paths(self, count: UserCount) -> list[Path]:
        """The files, in the order of the users."""
        n = -(-count.users // self.shard_size)
        return [self.output / f"shard-{shard:05d}-of-{n:05d}.parquet" for shard in range(n)]

    def shards(self) -> Iterator[list[Row]]:
        """The users of each file."""
        rows = self.source.rows()
        while shard := list(islice(rows, self.shard_size)):
            yield shard

    def shard(self, number: int) -> list[Row]:
        """The users of one file."""
        return list(islice(self.source.rows(number * self.shard_size), self.shard_size))

    def write(
        self, path: Path, recommender: Recommender, rows: list[Row], numbered: bool, advance: Callable[[int], object]
    ) -> None:
        """The lists of these users as one file. A user without a known item has an empty one. numbered: whether all
        users of all files are integers. advance: is told how many users are done."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        lists: list[tuple[list, list]] = [([], [])] * len(rows)
        able = [number for number, (_, history) in enumerate(rows) if recommender.knows(history)]
        step = 16 * recommender.batch_size  # so that batches hold prompts of like length, and the bar moves
        for start in range(0, len(able), step):
            chosen = able[start : start + step]
            found = recommender.recommend(
                [rows[number][1] for number in chosen], self.k, exclude_seen=self.exclude_seen,
                on_unknown=self.on_unknown,
            )  # fmt: skip
            for number, each in zip(chosen, found, strict=True):
                lists[number] = each.items, each.scores
            advance(len(chosen))
        advance(len(rows) - len(able))
        item = pa.int64() if recommender.served.raw_ids is None else pa.string()
        table = pa.table(
            {
                "user": pa.array([user if numbered else str(user) for user, _ in rows]),
                "items": pa.array([items for items, _ in lists], pa.list_(item)),
                "scores": pa.array([scores for _, scores in lists], pa.list_(pa.float32())),
            }
        )
        with atomic_path(path) as partial:
            pq.write_table(table, partial)


def _fingerprint(path: str | None) -> str | None:
    if path is not None and not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    return path and file_sha256(Path(path))[:16]
