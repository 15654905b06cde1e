r"""Recommend with SpecGR_Aux and SpecGR++, beside TIGER and the drafters alone, and say how good and how fast they are.

    bash script/specgr_inference.sh
    python -m specgr.run --config code/specgr/configs/toy.yaml --eval_mode test --draft_size 50 \
        --num_beams 30 --threshold -1.4 --max_eval_steps 1.0

Writes results.csv, results.md and facts.json to {output_dir}/{dataset}/results/{eval_mode}, or to --results FOLDER.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genrec.reports.tables import to_markdown, write_csv
from genrec.runtime.artefacts import fingerprint, hold, new_folder
from genrec.runtime.errors import UserError
from genrec.runtime.files import check_new, write_text
from genrec.runtime.machine import machine_name
from specgr.configuration.config import Config, run_configured
from specgr.configuration.names import SPECULATIVE, check_methods
from specgr.configuration.plans import describe, methods_of, settings_of, stages_of
from specgr.data.examples import SUBSETS, Examples
from specgr.train import open_bench

if TYPE_CHECKING:
    from specgr.evaluation.evaluation import Evaluation
    from specgr.training.stages import Workspace

STAGE = "specgr.run"


@dataclass(frozen=True)
class Flags:
    eval_mode: str = "test"  # or valid
    draft_size: int | None = None  # of SpecGR with any drafter, instead of the configuration's; so the next two
    num_beams: int | None = None
    threshold: float | None = None
    max_eval_steps: float = 1.0  # up to 1: this share of the requests; above: so many; a random choice
    methods: tuple[str, ...] = ()  # of `names.NEEDS`; none: all that there are data for
    batch_size: int = 64
    results: str | None = None
    overwrite: bool = False


def main(config: Config, flags: Flags) -> None:
    check(flags)
    check_methods(flags.methods)
    folder = Path(flags.results or Path(config.output_dir) / config.dataset / "results" / flags.eval_mode)
    check_new(folder, flags.overwrite, "--results")
    hold(folder)
    names = methods_of(config, flags.methods)
    changes = {key: getattr(flags, key) for key in ("draft_size", "num_beams", "threshold")}
    settings = {name: settings_of(config, name, **changes) for name in names if name in SPECULATIVE}
    bench = open_bench(config, stages_of(config, names))

    import pandas as pd

    from specgr.evaluation.recommenders import make

    trained, examples = fingerprints(bench, names), requests_of(bench, flags.eval_mode, flags.max_eval_steps)
    rows = []
    for name in names:
        found = evaluate_method(bench, make(bench, name, settings.get(name)), examples, flags.batch_size)
        rows.append({"method": name} | row_of(found))
        print(f"{name}: {found.seconds * 1000:.1f} ms a request", flush=True)
    table, counts = pd.DataFrame(rows), found.requests
    headline = f"{config.dataset}, {flags.eval_mode}: " + ", ".join(f"{counts[kind]} {kind}" for kind in SUBSETS)
    headline += f" requests, batches of {flags.batch_size}{describe(settings)}"
    of = {
        "machine": machine_name(bench.accelerator.device), "data": bench.data.fingerprint, "trained": trained,
        "settings": {name: asdict(one) for name, one in settings.items()},
    }  # fmt: skip
    with new_folder(folder, STAGE, asdict(flags), **of) as partial:
        write_csv(partial / "results.csv", table)
        write_text(partial / "results.md", f"{headline}\n\n{to_markdown(table)}")
    print(f"\n{headline}\n\n{to_markdown(table)}\nwritten to {folder}")


def check(flags: Flags) -> None:
    """Raises UserError that names the flag."""
    if flags.eval_mode not in ("valid", "test"):
        raise UserError(f"--eval_mode {flags.eval_mode}: choose from valid, test")


def requests_of(bench: "Workspace", eval_mode: str, max_eval_steps: float) -> Examples:
    """The samples of the split, or a random choice as `Flags.max_eval_steps` says. Raises UserError if it has none."""
    examples: Examples = getattr(bench.data, eval_mode)
    if not len(examples):
        raise UserError(f"--eval_mode {eval_mode}: no sample of this split of {bench.config.dataset} has a history")
    most = max_eval_steps * len(examples) if max_eval_steps <= 1 else max_eval_steps
    return examples.sample(max(1, round(most)), bench.config.seed)


def evaluate_method(bench: "Workspace", recommender, examples: Examples, batch_size: int) -> "Evaluation":
    """All requests, on the device."""
    from specgr.evaluation.evaluation import evaluate

    return evaluate(
        recommender, examples.samples(), bench.seen, batch_size=batch_size, max_history=bench.config.max_history
    )


def row_of(found: "Evaluation") -> dict[str, float | None]:
    """A row of the table: quality by kind of target, then what it took."""
    quality = {f"{name} {kind}": value for kind in SUBSETS for name, value in found.quality[kind].items()}
    return quality | {
        "unseen share": found.unseen_share, "acceptance": found.acceptance, "rounds": found.rounds,
        "ms": found.seconds * 1000,
    }  # fmt: skip


def fingerprints(bench: "Workspace", names: Sequence[str]) -> dict[str, str]:
    """Of the trainings that these methods use. Raises UserError if one is missing, or of other data."""
    from specgr.training.stages import open_stage

    return {stage: fingerprint(open_stage(bench, stage)) for stage in stages_of(bench.config, names)}


if __name__ == "__main__":
    run_configured(main, Flags)
