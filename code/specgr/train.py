"""Train TIGER, UniSRec, SASRec_T and the two stages of SpecGR++, those that are not trained yet.

    bash script/specgr_train.sh
    accelerate launch -m specgr.train --config code/specgr/configs/toy.yaml --stages tiger,stage1,stage2

Writes {output_dir}/{dataset}/{tiger,unisrec,sasrec_t,stage1,stage2}. A training that was killed goes on where it was.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genrec.identifiers.vectors import load_embeddings
from genrec.runtime.cli import process_count
from genrec.runtime.errors import UserError
from specgr.configuration.config import Config, run_configured
from specgr.configuration.plans import OF_TEXTS, STAGES, check_division, check_trained, plan_key, plan_of
from specgr.data.examples import load_data

if TYPE_CHECKING:
    from specgr.training.stages import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Flags:
    stages: tuple[str, ...] = STAGES
    overwrite: bool = False  # what was trained, or begun, with other settings


def open_bench(config: Config, trained: Sequence[str] = ()) -> "Workspace":
    """The workspace. trained: stages that must be there. Raises UserError if the data cannot be read, or these are
    missing."""
    folder = Path(config.data_path) / config.dataset
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such data set folder; set --data_path and --dataset, make the toy (bash "
            "script/specgr_quickstart.sh) or fetch a data set (bash data/download.sh)"
        )
    check_trained(config, trained)
    data = load_data(
        config.data_path,
        config.dataset,
        config.index,
        max_history=config.max_history,
        digits=config.digits,
        bos_eos=config.bos_eos,
    )
    texts = load_embeddings(Path(config.embeddings), len(data.seen)).float() if config.embeddings else None

    from specgr.training.fitting import new_accelerator
    from specgr.training.stages import Workspace

    accelerator = new_accelerator()
    return Workspace(config, data, texts if texts is None else texts.to(accelerator.device), accelerator)


def main(config: Config, flags: Flags) -> None:
    for name in flags.stages:
        if name not in STAGES:
            raise UserError(f"--stages {name}: choose from {', '.join(STAGES)}")
    names = flags.stages
    if names == STAGES and config.embeddings is None:
        logger.info("embeddings is not set: UniSRec, and with it SpecGR_Aux, and SASRec_T are left out")
        names = tuple(name for name in STAGES if name not in OF_TEXTS)
    for name in names:
        check_division(plan_of(config, name), plan_key(name), process_count())
    bench = open_bench(config)

    from specgr.training.stages import train

    train(bench, names, flags.overwrite)


if __name__ == "__main__":
    run_configured(main, Flags)
