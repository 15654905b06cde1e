r"""Serve recommendations over HTTP: POST /recommend {"history": [12, 7, 99], "k": 20} gets items and scores.

    TARGET_MODEL=output/toy/target bash script/serve.sh
    atspeed serve --target_model output/toy/target --draft_model output/toy/draft-AtSpeedSModel --port 8000

Requests that arrive together are decoded together; each list is that of the target's own beam search. A request that
cannot be answered gets 422 and one line, before it meets the others; where too many wait, 503 and Retry-After.
GET /health, /metrics (Prometheus), /docs, and with --page / for a person. POST /admin/reload {"target_model": …,
"index": …} changes models or catalogue without a restart, from this machine, or with the token of ATSPEED_ADMIN_TOKEN.
SIGTERM and Ctrl-C end it once what it has let in is answered.
"""

from __future__ import annotations

import logging
import socket
from importlib.util import find_spec
from itertools import islice

from atspeed.benchmark.methods import GAMMA
from atspeed.checkpoints.shapes import check_dtype
from genrec.data.histories import Row, open_users
from genrec.runtime.errors import UserError

HOSTS = ("127.0.0.1", "0.0.0.0", "::")
MOST_USERS = 10_000  # that the page offers

logger = logging.getLogger(__name__)


def main(
    target_model: str,
    draft_model: str | None = None,
    index: str | None = None,
    raw_ids: str | None = None,
    titles: str | None = None,
    stop_list: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    batch_size: int = 32,
    batch_wait: float = 0.005,
    max_k: int = 100,
    max_items: int = 1000,
    max_queue: int = 256,
    max_wait: float = 30.0,
    drain_seconds: float = 30.0,
    workers_per_device: int = 1,
    page: bool = True,
    histories: str | None = None,
    dataset: str | None = None,
    data_path: str = "data",
    split: str = "test",
    draft_beam_size: int | None = None,
    gamma: int = GAMMA,
    dtype: str = "float32",
) -> None:
    check_dtype(dtype)
    if host not in HOSTS:
        raise UserError(f"--host {host}: choose from {', '.join(HOSTS)}")
    lacking = [name for name in ("litserve", "prometheus_client") if find_spec(name) is None]
    if lacking:
        raise UserError(f'{", ".join(lacking)}: not installed; pip install -e ".[serve]", or run script/setup.sh')
    users: list[Row] = []
    if histories is not None or dataset is not None:
        users = list(islice(open_users(histories, dataset, data_path, split).rows(), MOST_USERS))
    _check_port(host, port)

    import torch

    from atspeed.recommend.recommender_setting import RecommenderSetting
    from atspeed.serve.gate import RequestLimits
    from atspeed.serve.server import Service

    setting = RecommenderSetting(
        target_model, draft_model, index, raw_ids, stop_list, titles, dtype, batch_size, draft_beam_size, gamma
    )
    gpus = torch.cuda.device_count()
    service = Service.build(
        setting, RequestLimits(max_k, max_items, max_queue), accelerator="cuda" if gpus else "cpu", devices=gpus or 1,
        workers_per_device=workers_per_device, batch_timeout=batch_wait, timeout=max_wait, page=page, users=users,
    )  # fmt: skip
    service.run(host, port, drain_seconds)
    logger.info("stopped")


def _check_port(host: str, port: int) -> None:
    """Raises UserError if another program listens there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror} ({host}); choose another") from error
