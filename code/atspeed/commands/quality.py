r"""How good the target's recommendations are, beside simple baselines under the same evaluation.

    bash script/quality.sh
    atspeed quality --dataset toy --target_model output/toy/target \
        --output_dir output/toy/quality

Without a target, the baselines alone. Writes quality.csv, quality.md, quality.png and over.csv, how much better the
target is than each with its interval, to a folder of --output_dir that is named by the settings; what is there of the
same settings is kept, and a run that was interrupted goes on where it was. --exclude_seen: lists without what a user
had already, of the target and of the baselines alike; whoever chose such an item again is then missed by all.
"""

from pathlib import Path

from atspeed.benchmark.methods import check_fit
from atspeed.benchmark.report import CUTOFFS, results_name, short, users_name
from atspeed.checkpoints.checkpoint import open_checkpoint
from atspeed.checkpoints.shapes import check_dtype
from genrec.data.dataset import load_dataset, take
from genrec.evaluation.baselines import BASELINES, check_baselines
from genrec.runtime.artefacts import is_done, new_folder
from genrec.runtime.errors import UserError
from genrec.runtime.machine import made_on

STAGE = "quality"


def main(
    dataset: str,
    output_dir: str,
    target_model: str | None = None,
    baselines: tuple[str, ...] = BASELINES,
    data_path: str = "data",
    index: str | None = None,
    split: str = "test",
    beam_size: int = 20,
    batch_size: int = 32,
    exclude_seen: bool = False,
    max_users: int | None = None,
    dtype: str = "float32",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    weights = check_dtype(dtype)
    check_baselines(baselines)
    if split not in ("valid", "test"):
        raise UserError(f"--split {split}: choose from valid, test; the baselines know the answers of any other")
    data = load_dataset(data_path, dataset, index)
    check_fit(data.catalogue, "beam_size", beam_size)
    target = open_checkpoint(target_model, "finetune_llama", "finetune_llama", data) if target_model else None
    max_history = target.setting.max_history if target else 20
    samples = take(data.samples(split, max_history=max_history), max_users, seed)
    histories = [sample.history for sample in samples]
    whole = take(data.samples(split, max_history=None), max_users, seed) if exclude_seen else samples
    seen = [set(sample.history) if exclude_seen else set() for sample in whole]
    made_of = {
        "dataset": dataset, "target": target and target.fingerprint, "baselines": list(baselines),
        "served": data.catalogue.fingerprint, "split": split, "users": short(samples), "beam_size": beam_size,
        "batch_size": batch_size, "exclude_seen": exclude_seen, "dtype": dtype, "seed": seed,
    }  # fmt: skip
    output = Path(output_dir) / results_name(
        [beam_size], Path(target_model).name if target_model else "no-target", [batch_size], dtype, split,
        users_name(max_users, seed), f"seed{seed}" if seed and not max_users else "",
        "unseen" if exclude_seen else "", "" if baselines == BASELINES else f"baselines-{short(baselines)}",
    )  # fmt: skip
    work = output.with_name(output.name + ".work")
    if is_done(output, work, STAGE, made_of, overwrite):
        return

    from atspeed.benchmark.journal import open_journal
    from atspeed.benchmark.recommendation_quality import (
        TARGET,
        Generative,
        ItemList,
        judge,
        make_baseline,
        recommend_unseen,
        save_quality,
        target_over_baselines,
    )
    from atspeed.checkpoints.loading import load_model, load_tokenizer
    from atspeed.processes import this_process

    opened = open_journal(output, work, STAGE, made_of, overwrite, ItemList, "method", "request")
    if not opened:
        return
    state, (journal, done) = this_process(), opened
    if target and target_model:
        model = load_model(target_model, weights, state.device)
        setting = target.setting
        recommender = Generative(
            model, load_tokenizer(target_model), data.catalogue, setting.cutoff, batch_size, setting.prompt
        )
        for batch in recommender.recommend(histories, seen, beam_size, state.process_index, state.num_processes, done):
            journal.keep(batch)
    state.wait_for_everyone()
    if not state.is_main_process:
        return

    for name in baselines:
        if (name, 0) not in done:  # all requests of a baseline are one line
            baseline = make_baseline(name, data, split, max_history=max_history, seed=seed, device=state.device)
            ranked = recommend_unseen(baseline, histories, seen, beam_size)
            journal.keep(ItemList(name, request, items) for request, items in enumerate(ranked))
    records = journal.read()
    methods = [*baselines, TARGET] if target else baselines
    lists = {name: [record.items for record in records if record.method == name] for name in methods}
    cutoffs = [k for k in CUTOFFS if k <= beam_size]
    table, over = judge(lists, samples, cutoffs), target_over_baselines(lists, samples, cutoffs)
    machine = made_on(state.device)
    headline = f"{dataset}, {split} split, {len(samples)} users, K {beam_size}, {dtype}"
    if exclude_seen:
        headline += ", no items of the history"
    with new_folder(output, STAGE, made_of, work, machine=machine) as folder:
        shown = save_quality(folder, table, over, headline)
    print(f"\n{headline}\n\n{shown}\nwritten to {output}")
