r"""Ask a service as its users would, and say how long they wait.

    bash script/load.sh
    atspeed load --url http://127.0.0.1:8000 --dataset toy --target_model output/toy/target --output_dir output/toy/load

Closed loop: --clients, each of which asks again when it has its answer. Open loop: --rates, requests a second that
arrive at random (Poisson), whatever becomes of those before. Counts refusals (503) and failures, and, with
--target_model, compares every history's list with the library's. Writes load.csv, load.md and load.png.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from genrec.data.histories import open_users
from genrec.reports.tables import to_markdown, write_csv
from genrec.runtime.artefacts import is_done, new_folder
from genrec.runtime.errors import UserError
from genrec.runtime.files import write_text
from genrec.runtime.machine import made_on

if TYPE_CHECKING:
    import pandas as pd

    from atspeed.serve.load_test import LoadResult

STAGE = "load"
MOST_USERS = 10_000

logger = logging.getLogger(__name__)


def main(
    output_dir: str,
    url: str = "http://127.0.0.1:8000",
    histories: str | None = None,
    dataset: str | None = None,
    data_path: str = "data",
    split: str = "test",
    k: int = 20,
    clients: tuple[int, ...] = (1, 8, 32, 64),
    rates: tuple[float, ...] = (),
    seconds: float = 30.0,
    target_model: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    if find_spec("httpx2") is None:
        raise UserError('httpx2: not installed; pip install -e ".[serve]", or run script/setup.sh')
    arguments = {key: value for key, value in locals().items() if key not in ("output_dir", "overwrite")}
    arguments["clients"], arguments["rates"] = list(clients), list(rates)
    output = Path(output_dir)
    if is_done(output, output, STAGE, arguments, overwrite):
        return
    users = list(islice(open_users(histories, dataset, data_path, split).rows(), MOST_USERS))

    import httpx2
    import pandas as pd

    from atspeed.serve.load_test import LoadTest

    try:
        httpx2.get(f"{url}/health").raise_for_status()
    except httpx2.HTTPError as error:
        raise UserError(f"--url {url}: {error}; start the service with bash script/serve.sh") from error
    test = LoadTest(url, [history for _, history in users], k, seed)
    results: list[LoadResult] = []
    for run in [*(test.closed(count, seconds) for count in clients), *(test.open(rate, seconds) for rate in rates)]:
        results.append(asyncio.run(run))
        row = results[-1].row()
        logger.info(", ".join(f"{name} {value}" for name, value in row.items()))
        for failure in results[-1].failures[:3]:
            logger.info(f"  {failure}")
    table = pd.DataFrame([result.row() for result in results])
    verdict = _verdict(results, test.histories, k, target_model)
    said = f"{url}, K = {k}, {len(users)} histories, {seconds:g} s a load; {made_on('cpu')}"
    with new_folder(output, STAGE, arguments) as partial:
        write_csv(partial / "load.csv", table)
        write_text(partial / "load.md", f"{said}\n\n{to_markdown(table, tuple(table.columns))}\n{verdict}\n")
        _plot(table, said, partial / "load.png")
    print(f"{to_markdown(table, tuple(table.columns))}\n{verdict}\nwritten to {output}")


def _verdict(results: list[LoadResult], histories: Sequence[list], k: int, target_model: str | None) -> str:
    lists: dict[int, list] = {}
    changed = sum(result.changed for result in results)
    for result in results:
        for number, found in result.lists.items():
            changed += lists.setdefault(number, found) != found
    said = f"{changed} lists changed from one request of a history to another"
    if target_model is None or not lists:
        return said
    from atspeed import Recommender

    chosen = sorted(lists)
    expected = Recommender.from_pretrained(target_model).recommend([histories[number] for number in chosen], k)
    equal = sum(each.items == lists[number] for number, each in zip(chosen, expected, strict=True))
    return f"{said}; {equal} of {len(chosen)} lists are equal to the library's"


def _plot(table: pd.DataFrame, said: str, path: Path) -> None:
    """What people wait, by clients and by requests a second: a panel each, where there are some."""
    from matplotlib.figure import Figure

    closed = table["load"].str.contains("client")
    panels = [("closed loop", table[closed]), ("open loop (Poisson)", table[~closed])]
    panels = [(title, rows) for title, rows in panels if len(rows)]
    figure = Figure(figsize=(4.5 * len(panels), 4), layout="constrained")
    for axes, (title, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in ("p50_ms", "p90_ms", "p99_ms"):
            axes.plot(rows["load"], rows[name], marker="o", label=name.removesuffix("_ms"))
        axes.set(ylabel="ms from request to list", title=title, ylim=(0, None))
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(said, fontsize=8)
    figure.savefig(path, dpi=150)
