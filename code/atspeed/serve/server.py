"""The server: LitServe with the gate before it, and what there is beside `POST /recommend`."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import litserve
from fastapi import HTTPException, Request
from pydantic import ValidationError
from starlette.responses import HTMLResponse, JSONResponse, Response

from atspeed.recommend.recommender_setting import RecommenderSetting
from atspeed.serve.gate import Gate, GateMiddleware, RequestLimits
from atspeed.serve.messages import ReloadRequest, one_line
from atspeed.serve.worker import RecommendAPI
from atspeed.serve.workers import Workers
from genrec.runtime.errors import UserError

if TYPE_CHECKING:
    from types import FrameType

    from genrec.data.histories import Row

logger = logging.getLogger(__name__)

TOKEN = "ATSPEED_ADMIN_TOKEN"  # environment variable: who may reload from elsewhere
LOOPBACK = ("127.0.0.1", "::1")


@dataclass
class Service:
    """A server, and what its process shares with its routes."""

    setting: RecommenderSetting
    gate: Gate
    workers: Workers
    server: litserve.LitServer

    @classmethod
    def build(
        cls, setting: RecommenderSetting, limits: RequestLimits, *, accelerator: str, devices: int,
        workers_per_device: int, batch_timeout: float, timeout: float, page: bool, users: Sequence[Row],
    ) -> Service:  # fmt: skip
        """accelerator, devices: "cuda" or "cpu", and how many. batch_timeout: seconds that a request waits for others.
        timeout: seconds after which one that still waits is given up. page: whether `/` is a page for a person.
        users: whose histories the page offers. Raises UserError for models or files that do not fit."""
        served, titles = setting.open()
        gate, workers = Gate(served, titles, limits, page), Workers(devices * workers_per_device)
        api = RecommendAPI(setting, workers.theirs, gate.draining, gate.drained, batch_timeout)
        server = litserve.LitServer(
            api, accelerator=accelerator, devices=devices, workers_per_device=workers_per_device, timeout=timeout,
            middlewares=[(GateMiddleware, {"gate": gate})],
        )  # fmt: skip
        service = cls(setting, gate, workers, server)
        service._add_routes(page, users)
        return service

    def run(self, host: str, port: int, drain_seconds: float) -> None:
        """Serve until SIGTERM or Ctrl-C; then answer what was let in, for at most `drain_seconds`, and end."""
        process = os.getpid()

        def stop(number: int, frame: FrameType | None) -> None:
            # Of a process that was forked from this one: it is needed until all is answered, whoever ends the service
            # by a signal to all of its processes, as systemd does.
            if os.getpid() != process:
                if self.gate.drained.is_set():
                    os._exit(128 + number)
                return
            for each in (signal.SIGTERM, signal.SIGINT):
                signal.signal(each, signal.SIG_IGN)
            logger.info(f"stopping: {self.gate.in_flight.value} requests are still answered")
            self.gate.draining.set()
            end = time.monotonic() + drain_seconds
            while self.gate.in_flight.value and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(0.1)  # the last answer is on its way
            self.gate.drained.set()
            raise KeyboardInterrupt  # which LitServe ends its processes by

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        logger.info(f"http://{host}:{port}: loading {self.setting.target_model}")
        # One server process: it counts, and it knows the catalogue.
        try:
            self.server.run(
                host=host,
                port=port,
                num_api_servers=1,
                log_level="warning",
                generate_client_file=False,
                access_log=False,
            )
        except (EOFError, ConnectionError) as error:  # LitServe has ended what it waits for
            raise UserError(
                "a worker process has ended, and so has the service; what stands above says why, if it was not killed, "
                "as the system does where memory runs out"
            ) from error

    def _add_routes(self, page: bool, users: Sequence[Row]) -> None:
        app, gate = self.server.app, self.gate

        @app.get("/metrics")
        def metrics() -> Response:
            return Response(gate.metrics.page(), media_type="text/plain; version=0.0.4")

        @app.post("/admin/reload")
        async def reload(request: Request) -> JSONResponse:
            _check_admin(request)
            try:
                asked = ReloadRequest.model_validate_json(await request.body() or b"{}")
                served = await asyncio.to_thread(self._reload, asked.model_dump(exclude_unset=True))
            except ValidationError as error:
                raise HTTPException(422, one_line(error)) from error
            except UserError as error:
                gate.metrics.reloads.labels("refused").inc()
                raise HTTPException(422, f"{error}; what was served is served on") from error
            gate.metrics.reloads.labels("done").inc()
            return JSONResponse(served)

        # LitServe has a line of its own there.
        app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) != "/"]
        if not page:
            return

        @app.get("/")
        def index() -> HTMLResponse:
            return HTMLResponse(Path(__file__).with_name("page.html").read_text("utf-8"))

        @app.get("/user")
        def user() -> JSONResponse:
            """A user by chance, of those that the service was given; without any, a history by chance."""
            if users:
                name, history = random.choice(users)
            else:
                items = random.sample(sorted(gate.served.items), min(5, len(gate.served.items)))
                name, history = None, gate.served.names(items)
            return JSONResponse({"user": name, "history": history, "titles": gate.titles_of(history)})

    def _reload(self, changes: dict[str, str | None]) -> dict[str, object]:
        setting = replace(self.setting, **changes)  # type: ignore[arg-type]
        served, titles = setting.open()
        self.workers.reload(setting)
        self.setting, self.gate.served, self.gate.titles = setting, served, titles
        return {
            "target_model": setting.target_model, "draft_model": setting.draft_model, "items": len(served.items),
            "catalogue": served.catalogue.fingerprint,
        }  # fmt: skip


def _check_admin(request: Request) -> None:
    """Raises HTTPException for who may not reload: with a token, all that do not have it; without, other machines."""
    token = os.environ.get(TOKEN)
    if token:
        if not secrets.compare_digest(request.headers.get("authorization", "").encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, f"needs the header Authorization: Bearer …, with the token of {TOKEN}")
    elif request.client is None or request.client.host not in LOOPBACK:
        raise HTTPException(403, f"is for this machine alone, or, where {TOKEN} is set, for who has the token")
