"""A worker process: decodes batches of requests, and loads other models or another catalogue while it does."""

# LitServe reads the annotations of `decode_request` as they stand, so they must not be texts.
import io
import logging
import os
import signal
import threading
from collections import defaultdict
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event

import litserve

from atspeed.recommend.recommender import Recommendation, Recommender
from atspeed.recommend.recommender_setting import RecommenderSetting
from atspeed.recommend.request_tree import draw_tree
from atspeed.serve.gate import PATH
from atspeed.serve.messages import RecommendRequest
from genrec.runtime.errors import UserError

logger = logging.getLogger(__name__)


class RecommendAPI(litserve.LitAPI):
    """What LitServe runs in each worker."""

    def __init__(
        self, setting: RecommenderSetting, channels: list[Connection], draining: Event, drained: Event,
        batch_timeout: float,
    ):  # fmt: skip
        """channels: a worker's end each, see `Workers`. draining, drained: see `Gate`. batch_timeout: seconds that a
        request waits for others to be decoded with it."""
        super().__init__(max_batch_size=setting.batch_size, batch_timeout=batch_timeout, api_path=PATH)
        self.setting, self.channels, self.draining, self.drained = setting, channels, draining, drained

    def health(self) -> bool:
        return not self.draining.is_set()

    def setup(self, device: str) -> None:
        # Ctrl-C, or SIGTERM to all processes, ends the server, which ends its workers when all is answered.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if self.drained.is_set() else None)
        self.recommender = _loaded(self.setting, device)
        print(f"{device}: {self.setting.target_model} is loaded", flush=True)
        channel = self.channels[int(os.environ["LITSERVE_WORKER_ID"])]
        threading.Thread(target=self._obey, args=(channel, device), daemon=True).start()

    def decode_request(self, request: RecommendRequest) -> RecommendRequest:
        return request

    def predict(self, requests: RecommendRequest | list[RecommendRequest]) -> dict | list[dict]:
        """The answer to each request of a batch; without batching, to one request."""
        if isinstance(requests, RecommendRequest):
            return self.predict([requests])[0]  # type: ignore[index]
        recommender = self.recommender  # the same for the whole batch, whatever is loaded meanwhile
        answers: list[dict] = [{}] * len(requests)
        alike: dict[tuple[int, str], list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            alike[request.k, request.on_unknown].append(number)
        for numbers in alike.values():
            for number, answer in zip(numbers, _answers(recommender, [requests[n] for n in numbers]), strict=True):
                answers[number] = answer
        return answers

    def _obey(self, channel: Connection, device: str) -> None:
        """Load what the server says, and use it, or drop it, when it says so: all workers change, or none does."""
        loaded: Recommender | None = None
        while True:
            try:
                order = channel.recv()
            except EOFError:
                return
            try:
                if isinstance(order, RecommenderSetting):
                    loaded = _loaded(order, device)
                elif order == "use" and loaded is not None:
                    self.recommender = loaded
                if not isinstance(order, RecommenderSetting):
                    loaded = None
                channel.send(None)
            except UserError as error:
                channel.send(str(error))
            except Exception as error:
                logger.exception("a reload failed")
                channel.send(f"{type(error).__name__}: {error}")


def _loaded(setting: RecommenderSetting, device: str) -> Recommender:
    """A recommender that has answered once, so that no user waits for what the first request takes."""
    recommender = setting.load(device)
    recommender.recommend([recommender.served.names([min(recommender.served.items)])], 1)
    return recommender


def _answers(recommender: Recommender, requests: list[RecommendRequest]) -> list[dict]:
    """Answers to requests of one k and on_unknown. One that cannot be answered is refused alone."""
    try:
        lists = recommender.recommend(
            [request.history for request in requests], requests[0].k, on_unknown=requests[0].on_unknown,
            exclude=[[*request.exclude, *(request.history if request.exclude_seen else ())] for request in requests],
            allow=[request.allow for request in requests],
        )  # fmt: skip
    except UserError as error:
        if len(requests) == 1:
            return [{"refused": str(error).removeprefix("history 0: ")}]
        return [_answers(recommender, [request])[0] for request in requests]
    return [_answer(recommender, *each, len(requests)) for each in zip(requests, lists, strict=True)]


def _answer(recommender: Recommender, request: RecommendRequest, found: Recommendation, batch_size: int) -> dict:
    answer = {
        "items": found.items, "scores": found.scores, "target_calls": found.target_calls,
        "accepted_levels": found.accepted_levels, "batch_size": batch_size,
    }  # fmt: skip
    return answer | {"tree": _tree(recommender, request)} if request.tree else answer


def _tree(recommender: Recommender, request: RecommendRequest) -> str:
    """The token tree of a request, as SVG."""
    nodes = recommender.tree(request.history, request.k, request.on_unknown)
    calls = max(node.round for node in nodes.values())
    figure = draw_tree(nodes, lambda node: recommender.token(node.token), f"{request.k} beams, {calls} target calls")
    picture = io.StringIO()
    figure.savefig(picture, format="svg", bbox_inches="tight")
    return picture.getvalue()
