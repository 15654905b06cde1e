r"""Recommend K items to every user of a file, or of a split of a data set: one row a user, in Parquet.

    TARGET_MODEL=output/toy/target INPUT=users.jsonl OUTPUT=lists bash script/recommend.sh
    atspeed recommend --target_model output/toy/target --histories users.parquet --output_dir lists

--histories: JSON lines, CSV or Parquet of user and history (items, oldest first); or --dataset and --split. Writes
shard-….parquet of user, items and scores, in the order of the users, each whole or not at all. Killed at any moment and
started again, it goes on with the shards that are missing; processes take the next one that nobody has. A file of users
is read shard by shard. Lists are those of the target's own beam search, with a draft or without.
--engine ray: Ray Data hands the shards out to actors on a cluster; models, input and output then lie where all machines
see them. Either engine goes on with what the other has begun.
"""

from __future__ import annotations

from pathlib import Path

from atspeed.benchmark.methods import GAMMA
from atspeed.data.shards import claim_shard, clear_claims
from atspeed.recommend.bulk import STAGE, BulkJob
from atspeed.recommend.on_ray import RayActors, write_on_ray
from atspeed.recommend.recommender_setting import RecommenderSetting
from genrec.data.histories import UserCount, open_users
from genrec.runtime.artefacts import NOTE, already_done, is_done, make_facts, write_facts
from genrec.runtime.errors import UserError
from genrec.runtime.progress import progress_bar

ENGINES = ("accelerate", "ray")


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
    engine: str = "accelerate",
    address: str | None = None,
    actors: int = 1,
    gpus_per_actor: float = 0.0,
    cpus_per_actor: float = 0.5,
    overwrite: bool = False,
) -> None:
    job = BulkJob(
        RecommenderSetting(
            target_model, draft_model, index, raw_ids=raw_ids, stop_list=stop_list, dtype=dtype, batch_size=batch_size,
            draft_width=draft_beam_size, gamma=gamma,
        ),
        open_users(histories, dataset, data_path, split, index), Path(output_dir), k, exclude_seen, on_unknown,
        shard_size,
    )  # fmt: skip
    if engine not in ENGINES:
        raise UserError(f"--engine {engine}: choose from {', '.join(ENGINES)}")
    of_ray = RayActors(address, actors, gpus_per_actor, cpus_per_actor)
    if engine == "ray":
        of_ray.check()
    arguments = job.arguments()
    if is_done(job.output, job.output, STAGE, arguments, overwrite):
        return

    count = job.check()
    if engine == "ray":
        if already_done(job.output, job.output, STAGE, arguments, overwrite):
            return
        clear_claims(job.output)
        missing = [number for number, path in enumerate(job.paths(count)) if not path.is_file()]
        bar = progress_bar(count.users, "recommend", "user")
        bar.update(count.users - sum(min(shard_size, count.users - number * shard_size) for number in missing))
        for users in write_on_ray(job, count, missing, of_ray) if missing else ():
            bar.update(users)
        bar.close()
        _finish(job, arguments, count)
        return

    from atspeed.processes import this_process

    state = this_process()
    with state.main_process_first():
        if already_done(job.output, job.output, STAGE, arguments, overwrite):
            return
        if state.is_main_process:
            clear_claims(job.output)
    state.wait_for_everyone()
    recommender = job.setting.load(str(state.device))
    bar = progress_bar(count.users, "recommend", "user")
    for path, rows in zip(job.paths(count), job.shards(), strict=True):
        if not path.is_file() and claim_shard(path):
            job.write(path, recommender, rows, count.numbered, bar.update)
        else:
            bar.update(len(rows))
    bar.close()
    state.wait_for_everyone()
    if state.is_main_process:
        _finish(job, arguments, count)
        print(recommender.report())


def _finish(job: BulkJob, arguments: dict, count: UserCount) -> None:
    clear_claims(job.output)
    shards = len(job.paths(count))
    write_facts(job.output, make_facts(STAGE, arguments, users=count.users, shards=shards))
    (job.output / NOTE).unlink(missing_ok=True)
    print(f"{job.output}: {count.users} users, {job.k} items each, {shards} files")
