r"""Decode with one parameter varied: the draft width, the levels drafted a round, or the draft itself.

    PARAMETER=draft_beam_size VALUES="20 40 80" bash script/sweep.sh
    atspeed sweep --dataset beauty --target_model output/beauty/target --parameter gamma \
        --values 1,2,3 --draft_models output/beauty/draft-AtSpeedSModel --output_dir output/beauty/sweep

--parameter: draft_beam_size (N), gamma, or alpha or layers, of which each value has a draft of its own, in the order of
--values. All take turns on every request, beside `generate` and gamma 0, whose lists they must have. Writes sweep.csv,
sweep.md and sweep.png to a folder of --output_dir that is named by the settings: accepted levels, speed-ups, where the
time goes, and how often the first round accepts a level. A run that was interrupted goes on where it was.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from atspeed.benchmark.methods import (
    BASELINE,
    GAMMA,
    GENERATE,
    SPECULATIVE,
    Method,
    check_fit,
    check_widths,
    make_methods,
)
from atspeed.benchmark.report import results_name, short, users_name, verdict
from atspeed.benchmark.sweeps import PARAMETERS, point, save_sweep, sweep_table
from atspeed.checkpoints.checkpoint import open_checkpoint
from atspeed.checkpoints.shapes import check_dtype
from genrec.data.dataset import load_dataset, take
from genrec.runtime.artefacts import is_done, new_folder
from genrec.runtime.errors import UserError
from genrec.runtime.machine import made_on

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

STAGE = "sweep"
WHOLE = ("draft_beam_size", "gamma")  # parameters of the decoding


def main(
    target_model: str,
    draft_models: tuple[str, ...],
    output_dir: str,
    dataset: str,
    parameter: str,
    values: tuple[float, ...],
    data_path: str = "data",
    index: str | None = None,
    run_beam_sizes: tuple[int, ...] = (1, 5, 10, 20),
    draft_beam_size: int = 40,
    gamma: int = GAMMA,
    batch_size: int = 1,
    max_users: int | None = None,
    dtype: str = "float32",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    weights = check_dtype(dtype)
    settings = _settings(parameter, values, draft_models, draft_beam_size, gamma)
    data = load_dataset(data_path, dataset, index)
    for _, width, levels in settings:
        check_widths(run_beam_sizes, width)
        check_fit(data.catalogue, "run_beam_sizes", *run_beam_sizes, gamma=levels)
    checkpoint = open_checkpoint(target_model, "finetune_llama", "finetune_llama", data)
    drafts = [open_checkpoint(path, "train", "train", data).fingerprint for path in draft_models]
    samples = take(data.samples("test", max_history=checkpoint.setting.max_history), max_users, seed)
    made_of = {
        "dataset": dataset, "target": checkpoint.fingerprint, "drafts": drafts, "served": data.catalogue.fingerprint,
        "users": short(samples), "run_beam_sizes": list(run_beam_sizes), "parameter": parameter,
        "values": list(values), "draft_beam_size": draft_beam_size, "gamma": gamma, "batch_size": batch_size,
        "dtype": dtype,
    }  # fmt: skip
    output = Path(output_dir) / results_name(
        run_beam_sizes, f"{parameter}{'-'.join(f'{value:g}' for value in values)}", [batch_size], dtype,
        users_name(max_users, seed), short(made_of),
    )  # fmt: skip
    work = output.with_name(output.name + ".work")
    if is_done(output, work, STAGE, made_of, overwrite):
        return

    from atspeed.benchmark.journal import open_journal
    from atspeed.benchmark.runner import MethodBenchmark, Record
    from atspeed.checkpoints.loading import load_model, load_tokenizer
    from atspeed.processes import this_process
    from atspeed.prompts import encode_prompts

    opened = open_journal(output, work, STAGE, made_of, overwrite, Record, "width", "request")
    if not opened:
        return
    device, (journal, done) = this_process().device, opened
    tokenizer = load_tokenizer(target_model)
    prompts = encode_prompts(tokenizer, data.catalogue, samples, checkpoint.setting.cutoff, checkpoint.setting.prompt)
    items = data.catalogue.token_ids(tokenizer).to(device)
    models = [load_model(path, weights, device) for path in (target_model, *draft_models)]
    bench = MethodBenchmark(models, items, partial(_methods, values=values, settings=settings, items=items))
    bench.run(
        prompts, range(len(prompts)), run_beam_sizes, batch_size=batch_size, warmup=-(-3 // batch_size), done=done,
        keep=journal.keep,
    )  # fmt: skip

    records, machine = journal.read(), made_on(device)
    others = ", ".join(
        f"{name} {value}" for name, value in (("draft width", draft_beam_size), ("gamma", gamma))
        if name.replace("draft width", "draft_beam_size") != parameter
    )  # fmt: skip
    headline = f"{dataset}, {len(samples)} test users, batch {batch_size}, {dtype}, {others}, {machine}"
    with new_folder(output, STAGE, made_of, work, machine=machine) as folder:
        table = sweep_table(records, values, data.catalogue.levels)
        print("\n" + save_sweep(folder, parameter, table, headline, verdict(records, bench.exact)))
    print(f"written to {output}")


def _settings(
    parameter: str, values: tuple[float, ...], drafts: tuple[str, ...], draft_beam_size: int, gamma: int
) -> list[tuple[int, int, int]]:
    """Of each value: which draft, the draft width and gamma. Raises UserError for flags that do not fit together."""
    if parameter not in PARAMETERS:
        raise UserError(f"--parameter {parameter}: choose from {', '.join(PARAMETERS)}")
    said = ",".join(f"{value:g}" for value in values)
    if len(set(values)) < len(values):
        raise UserError(f"--values {said}: one is there twice")
    if parameter in WHOLE:
        if len(drafts) != 1:
            raise UserError(f"--draft_models {','.join(drafts)}: a sweep over {parameter} takes one draft")
        if any(value < 1 or value != int(value) for value in values):
            raise UserError(f"--values {said}: {parameter} takes whole numbers of at least 1")
        if parameter == "gamma":
            return [(0, draft_beam_size, int(value)) for value in values]
        return [(0, int(value), gamma) for value in values]
    if len(drafts) != len(values):
        raise UserError(
            f"--draft_models: give one draft for each of --values {said}, in their order, not {len(drafts)}"
        )
    return [(i, draft_beam_size, gamma) for i in range(len(values))]


def _methods(
    target: "PreTrainedModel", *drafts: "PreTrainedModel", values: tuple[float, ...],
    settings: list[tuple[int, int, int]], items: "Tensor",
) -> dict[str, Method]:  # fmt: skip
    methods = make_methods(target, None, items, None, GAMMA, names=(GENERATE, BASELINE))
    for value, (draft, width, gamma) in zip(values, settings, strict=True):
        methods[point(value)] = make_methods(
            target, drafts[draft], items, width, gamma, names=(SPECULATIVE,)
        )[SPECULATIVE]  # fmt: skip
    return methods
