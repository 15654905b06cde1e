"""A bulk job on Ray Data, on a cluster that is there or on this machine alone."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from atspeed.recommend.bulk import BulkJob
from genrec.data.histories import UserCount
from genrec.runtime.errors import UserError

if TYPE_CHECKING:
    import numpy as np

START_TRIES = 3  # of a local Ray: it gives its agent 15 seconds, which a busy machine may exceed
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayActors:
    """How many processes decode, and what Ray reserves for each."""

    address: str | None  # of a cluster; None: Ray is started here
    count: int
    gpus: float  # a share of one; 0: on the CPU
    cpus: float  # some must be left for Ray's own tasks

    def check(self) -> None:
        """Raises UserError if Ray is not installed, or nobody is at the address: Ray would wait for minutes."""
        if find_spec("ray") is None:
            raise UserError('--engine ray: Ray is not installed; pip install -e ".[pipeline,ray]"')
        host, colon, port = (self.address or "").removeprefix("ray://").rpartition(":")
        if not colon:
            return
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, ValueError) as error:
            raise UserError(f"--address {self.address}: no cluster there ({error})") from error


class ShardActor:
    """Writes files of a job, one after another, with models that it loads once."""

    def __init__(self, job: BulkJob, count: UserCount):
        import ray

        self.job, self.count, self.paths = job, count, job.paths(count)
        self.recommender = job.setting.load("cuda" if ray.get_gpu_ids() else "cpu")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[int]]:
        users = []
        for number in batch["shard"].tolist():
            rows = self.job.shard(number)
            self.job.write(self.paths[number], self.recommender, rows, self.count.numbered, lambda _: None)
            users.append(len(rows))
        return {"users": users}


def write_on_ray(job: BulkJob, count: UserCount, missing: list[int], actors: RayActors) -> Iterator[int]:
    """Write the missing files of a job, by their numbers; how many users each has, as it is done.

    Models, input and output lie where all machines see them. Raises UserError if Ray does not start.
    """
    _start(actors.address)

    import ray

    job = job.absolute()

    resources = {"num_cpus": actors.cpus} | ({"num_gpus": actors.gpus} if actors.gpus else {})
    done = ray.data.from_items([{"shard": number} for number in missing], override_num_blocks=len(missing)).map_batches(
        ShardActor, batch_size=1, fn_constructor_args=(job, count), **resources,
        compute=ray.data.ActorPoolStrategy(size=min(actors.count, len(missing))),
    )  # fmt: skip
    try:
        for row in done.iter_rows():
            yield row["users"]
    finally:
        ray.shutdown()


def _start(address: str | None) -> None:
    """Join the cluster at `address`, or start Ray here."""
    # Unless they are set: no token file in the user's home, no report of use to others.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

    import ray

    for tries in range(1, START_TRIES + 1):
        try:
            ray.init(address=address, include_dashboard=False if address is None else None, log_to_driver=False,
                     logging_level=logging.ERROR)  # fmt: skip
            break
        except Exception as error:  # of many kinds: a raylet that ended, an agent that was late, no cluster there
            said = " ".join(str(error).split())[:300]
            if address is not None or tries == START_TRIES:
                where = f"--address {address}" if address else "Ray"
                raise UserError(f"{where}: does not start ({said}); try again when the machine is less busy") from error
            logger.info(f"Ray did not start ({said}); again")
            ray.shutdown()
            time.sleep(5)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours counts users
    context.print_on_execution_start = False
