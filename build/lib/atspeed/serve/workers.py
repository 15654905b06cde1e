"""The server's side of its workers: what they are told beside requests."""

from __future__ import annotations

import multiprocessing
import threading
from multiprocessing.connection import Connection

from atspeed.recommend.recommender_setting import RecommenderSetting
from genrec.runtime.errors import UserError

PATIENCE = 900  # seconds that a worker may take to load a model


class Workers:
    """A connection to each worker process."""

    def __init__(self, count: int):
        pipes = [multiprocessing.get_context("spawn").Pipe() for _ in range(count)]
        self.theirs: list[Connection] = [pipe[0] for pipe in pipes]
        self._ours = [pipe[1] for pipe in pipes]
        self._busy = threading.Lock()

    def reload(self, setting: RecommenderSetting) -> None:
        """Have every worker load `setting`, and then use it. What they had serves until then, so that there are two of
        each model for a while.

        Raises UserError, and all go on with what they had, if one cannot load it or a reload is under way.
        """
        if not self._busy.acquire(blocking=False):
            raise UserError("another reload is under way; wait for it")
        try:
            problems = [said for said in self._tell(setting) if said]
            self._tell("drop" if problems else "use")
        finally:
            self._busy.release()
        if problems:
            raise UserError(problems[0])

    def _tell(self, order: RecommenderSetting | str) -> list[str | None]:
        """What each worker says to an order: None, or what went wrong."""
        for channel in self._ours:
            channel.send(order)
        return [channel.recv() if channel.poll(PATIENCE) else "a worker does not answer" for channel in self._ours]
