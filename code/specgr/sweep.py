r"""What δ, γ and β trade: each of them varied while the others stay as in the configuration.

    python -m specgr.sweep --config code/specgr/configs/toy.yaml --draft_sizes 5,20,50 \
        --thresholds -2.2,-1.8,-1.4 --beams 10,20,50

Writes sweep.csv, sweep.png and facts.json to {output_dir}/{dataset}/sweep, or to --results FOLDER. On the validation
split unless --eval_mode says otherwise, so that what is chosen here is not chosen on the test users.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genrec.reports.tables import pyplot, write_csv
from genrec.runtime.artefacts import hold, new_folder
from genrec.runtime.files import check_new
from genrec.runtime.machine import machine_name
from specgr.configuration.config import Config, run_configured
from specgr.configuration.names import CONSTRAINED, SPECULATIVE, check_methods
from specgr.configuration.plans import methods_of, settings_of, stages_of
from specgr.run import check, evaluate_method, fingerprints, requests_of, row_of
from specgr.train import open_bench

if TYPE_CHECKING:
    import pandas as pd

LABELS = {"draft_size": "draft size δ", "threshold": "threshold γ", "num_beams": "beams β"}
SHOWN = ("NDCG@50 in-sample", "NDCG@50 unseen", "acceptance", "ms")


@dataclass(frozen=True)
class Flags:
    draft_sizes: tuple[int, ...] = (5, 10, 20, 50)
    thresholds: tuple[float, ...] = (-2.2, -1.8, -1.6, -1.4, -1.2)
    beams: tuple[int, ...] = (10, 20, 50)
    methods: tuple[str, ...] = ()  # of `names.SPECULATIVE`; none: all that there are data for
    eval_mode: str = "valid"
    max_eval_steps: float = 1000
    batch_size: int = 64
    results: str | None = None
    overwrite: bool = False


def main(config: Config, flags: Flags) -> None:
    check(flags)
    check_methods(flags.methods, SPECULATIVE, f"; {CONSTRAINED} is always beside them")
    folder = Path(flags.results or Path(config.output_dir) / config.dataset / "sweep")
    check_new(folder, flags.overwrite, "--results")
    hold(folder)
    methods = [name for name in methods_of(config, flags.methods) if name in SPECULATIVE]
    varied = {"draft_size": flags.draft_sizes, "threshold": flags.thresholds, "num_beams": flags.beams}
    settings = {
        (name, key, value): settings_of(config, name, **{key: value})
        for name in methods for key, values in varied.items() for value in values
    }  # fmt: skip
    bench = open_bench(config, stages_of(config, (*methods, CONSTRAINED)))

    import pandas as pd

    from specgr.evaluation.recommenders import make

    trained = fingerprints(bench, (*methods, CONSTRAINED))
    examples, rows = requests_of(bench, flags.eval_mode, flags.max_eval_steps), []
    for (name, key, value), one in settings.items():
        found = row_of(evaluate_method(bench, make(bench, name, one), examples, flags.batch_size))
        rows.append({"method": name, "varied": key, "value": value} | asdict(one) | found)
        print(f"{name}, {LABELS[key]} {value:g}: " + ", ".join(f"{s} {found[s]:.4f}" for s in SHOWN), flush=True)
    beside = row_of(evaluate_method(bench, make(bench, CONSTRAINED), examples, flags.batch_size))
    of = {"machine": machine_name(bench.accelerator.device), "data": bench.data.fingerprint, "trained": trained}
    with new_folder(folder, "specgr.sweep", asdict(flags), **of) as partial:
        table = pd.DataFrame([*rows, {"method": CONSTRAINED} | beside])
        write_csv(partial / "sweep.csv", table)
        draw(table, partial / "sweep.png")
    print(f"written to {folder}")


def draw(table: "pd.DataFrame", path: Path) -> None:
    """A column a parameter, a row a quantity; TIGER constrained as a dotted line."""
    import pandas as pd

    plt = pyplot()
    figure, axes = plt.subplots(len(SHOWN), len(LABELS), figsize=(11, 10), sharex="col", sharey="row", squeeze=False)
    beside = table[table["method"] == CONSTRAINED].iloc[0]
    for column, (key, label) in enumerate(LABELS.items()):
        for row, shown in enumerate(SHOWN):
            axis = axes[row, column]
            for name, part in table[table["varied"] == key].groupby("method"):
                axis.plot(part["value"], part[shown], marker="o", label=name)
            if pd.notna(beside[shown]):
                axis.axhline(beside[shown], color="grey", linestyle=":", label=CONSTRAINED)
            axis.set_ylabel("" if column else shown)
        axes[-1, column].set_xlabel(label)
    for row in axes:
        row[0].set_ylim(bottom=0)  # of the whole row, once all that it holds is drawn
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_configured(main, Flags)
