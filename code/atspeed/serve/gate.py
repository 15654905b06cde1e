"""Stands before the workers' queue: refuses what cannot be answered, alone, and counts what is answered."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from atspeed.recommend.served import ServedCatalogue
from atspeed.serve.messages import RecommendRequest
from atspeed.serve.service_metrics import ServiceMetrics
from genrec.runtime.errors import UserError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATH = "/recommend"
MOST_BYTES = 2**22  # of a request


@dataclass(frozen=True)
class RequestLimits:
    """What a request may ask for, and how many may wait."""

    k: int = 100
    history: int = 1000  # items
    queue: int = 256  # requests that wait or are decoded


class RefusedRequest(Exception):
    """A request that gets no list."""

    def __init__(self, status: int, line: str, retry_after: int | None = None):
        super().__init__(line)
        self.status, self.line, self.retry_after = status, line, retry_after

    def response(self) -> JSONResponse:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return JSONResponse({"detail": self.line}, self.status, headers)


class Gate:
    """What the server process knows and counts. `served` and `titles` may be replaced at any time."""

    def __init__(self, served: ServedCatalogue, titles: dict[int, str], limits: RequestLimits, tree: bool):
        """titles: item number -> title. tree: whether a request may ask for its token tree."""
        self.served, self.titles, self.limits, self.tree = served, titles, limits, tree
        # Set: no more requests are let in; and: all that were let in are answered.
        self.draining, self.drained = (multiprocessing.get_context("spawn").Event() for _ in range(2))
        self.in_flight = multiprocessing.get_context("spawn").Value(
            "i", 0
        )  # also read by the process that ends the server
        self.metrics = ServiceMetrics(lambda: self.in_flight.value, os.getpid())
        self._rate = 1.0  # lists a second, lately
        self._last = time.monotonic()

    def admit(self, body: bytes) -> RecommendRequest:
        """Read and check a request. Raises RefusedRequest."""
        if self.draining.is_set():
            raise RefusedRequest(503, "the service is being stopped", 5)
        if self.in_flight.value >= self.limits.queue:
            seconds = math.ceil(self.limits.queue / self._rate)
            raise RefusedRequest(503, f"{self.limits.queue} requests are waiting", min(max(seconds, 1), 60))
        try:
            request = RecommendRequest.parse(body)
            self._check(request)
        except UserError as error:
            raise RefusedRequest(422, str(error)) from error
        return request

    def _check(self, request: RecommendRequest) -> None:
        if request.k > self.limits.k:
            raise UserError(f"k {request.k}: is limited to {self.limits.k}")
        self.served.check_k(request.k)
        if len(request.history) > self.limits.history:
            raise UserError(f"history: has {len(request.history)} items; it is limited to {self.limits.history}")
        if request.tree and not self.tree:
            raise UserError("tree: is not drawn here (PAGE=false)")
        if not self.served.read("history", request.history, request.on_unknown):
            raise UserError("history: holds no item of the catalogue")
        self.served.read("exclude", request.exclude, request.on_unknown)
        if request.allow is not None:
            allowed = self.served.read("allow", request.allow, request.on_unknown)
            if self.served.items.isdisjoint(allowed):
                raise UserError("allow: holds no item that there is to recommend")

    def answered(self, answer: dict, seconds: float) -> dict:
        """What a worker answers, with titles where there are some. Raises RefusedRequest if it could not answer, as
        where the catalogue has changed since the request was let in."""
        if "refused" in answer:
            raise RefusedRequest(422, answer["refused"])
        now = time.monotonic()
        self._rate += 0.1 * (1 / max(now - self._last, 1e-3) - self._rate)
        self._last = now
        self.metrics.listed(seconds, answer)
        return answer | {"titles": self.titles_of(answer["items"])} if self.titles else answer

    def titles_of(self, items: Iterable[int | str]) -> list[str | None]:
        numbers = [self.served.number(item) for item in items]
        return [None if number is None else self.titles.get(number) for number in numbers]


class GateMiddleware:
    """The gate, as ASGI middleware around LitServe's application."""

    def __init__(self, app: ASGIApp, gate: Gate):
        self.app, self.gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("POST", PATH):
            await self.app(scope, receive, send)
            return
        try:
            response = await self._answer(scope, receive)
        except RefusedRequest as refused:
            response = refused.response()
        self.gate.metrics.requests.labels(str(response.status_code)).inc()
        if self.gate.draining.is_set():
            response.headers["Connection"] = "close"  # the client asks another server, and finds no end in mid-request
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> JSONResponse:
        started, body = time.perf_counter(), await _body(receive)
        request = self.gate.admit(body)
        with self.gate.in_flight.get_lock():
            self.gate.in_flight.value += 1
        try:
            status, said = await _inner(self.app, scope, request.model_dump_json().encode())
        finally:
            with self.gate.in_flight.get_lock():
                self.gate.in_flight.value -= 1
        if status != 200:
            if status == 504:
                raise RefusedRequest(503, "the request has waited too long", 5)
            raise RefusedRequest(status, "the request could not be answered; the service's log says why")
        return JSONResponse(self.gate.answered(json.loads(said), time.perf_counter() - started))


async def _body(receive: Receive) -> bytes:
    """The whole body of a request. Raises RefusedRequest where it is too large."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RefusedRequest(499, "the client has gone")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_BYTES:
            raise RefusedRequest(413, f"the request is larger than {MOST_BYTES} bytes")
        if not message.get("more_body"):
            return b"".join(parts)


async def _inner(app: ASGIApp, scope: Scope, body: bytes) -> tuple[int, bytes]:
    """Status and body of what the application answers to a body."""
    status, parts, sent = 500, [], False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    headers = [(name, value) for name, value in scope["headers"] if name not in (b"content-length", b"content-type")]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await app({**scope, "headers": headers}, receive, send)
    return status, b"".join(parts)
