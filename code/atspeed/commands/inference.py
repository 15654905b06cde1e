r"""Stage 4: speculative beam search against gamma 0 and against transformers' `generate`, checked to be equal.

    bash script/inference.sh
    atspeed inference --dataset toy --target_model output/toy/target \
        --draft_model output/toy/draft-AtSpeedSModel --output_dir output/toy/results

Without a draft, gamma 0 (tree attention alone) is compared with `generate`. --stop_list FILE: items, one number a line
as in the identifier index, that stand in no list; histories may hold them, and as labels they count as missed.
Items that joined the index after training (`build_index.sh --extend`) are recommended like any other.
Writes results.csv, results.md, results.png and the list of every user, recommendations.jsonl (user, items, scores: the
log-probabilities of their identifiers; raw_user and raw_items where the data set has raw ids), into a folder of
--output_dir that is named by K, draft width, gamma, batch, precision, split and users. Results of other settings stay;
the same settings are not measured twice, and a run that was interrupted goes on where it was.
"""

from functools import partial
from pathlib import Path

from atspeed.benchmark.methods import BASELINE, GAMMA, check_fit, check_widths, make_methods
from atspeed.benchmark.report import SHORT, recommendations, results_name, save_report, summarise, users_name, verdict
from atspeed.checkpoints.checkpoint import open_checkpoint
from atspeed.checkpoints.shapes import check_dtype
from genrec.data.catalogue import read_stop_list
from genrec.data.dataset import load_dataset, take
from genrec.data.item_numbers import RawNames
from genrec.reports.tables import to_markdown
from genrec.runtime.artefacts import is_done, new_folder
from genrec.runtime.files import sha256, write_text
from genrec.runtime.machine import made_on

STAGE = "inference"


def main(
    target_model: str,
    output_dir: str,
    dataset: str,
    draft_model: str | None = None,
    data_path: str = "data",
    index: str | None = None,
    stop_list: str | None = None,
    split: str = "test",
    run_beam_sizes: tuple[int, ...] = (1, 3, 5, 10, 20),
    draft_beam_size: int = 40,
    gamma: int = GAMMA,
    batch_size: int = 1,
    max_users: int | None = None,
    warmup: int = 3,
    dtype: str = "float32",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    weights = check_dtype(dtype)
    if draft_model:
        check_widths(run_beam_sizes, draft_beam_size)
    data = load_dataset(data_path, dataset, index)
    stopped = read_stop_list(Path(stop_list), data.catalogue) if stop_list else set()
    served = data.catalogue.without(stopped)
    check_fit(served, "run_beam_sizes", *run_beam_sizes, gamma=gamma)
    checkpoint = open_checkpoint(target_model, "finetune_llama", "finetune_llama", data, grown=True)
    draft = open_checkpoint(draft_model, "train", "train", data, grown=True) if draft_model else None
    samples = take(data.samples(split, max_history=checkpoint.setting.max_history), max_users, seed)
    made_of = {
        "dataset": dataset, "target": checkpoint.fingerprint, "draft": draft and draft.fingerprint,
        "served": served.fingerprint, "split": split, "users": sha256(repr(samples).encode())[:16],
        "run_beam_sizes": list(run_beam_sizes), "draft_beam_size": draft and draft_beam_size, "gamma": draft and gamma,
        "batch_size": batch_size, "dtype": dtype,
    }  # fmt: skip
    output = Path(output_dir) / results_name(
        run_beam_sizes, f"N{draft_beam_size}_gamma{gamma}" if draft else "", [batch_size], dtype, split,
        users_name(max_users, seed), f"stop-{served.fingerprint[:8]}" if stopped else "",
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
    state, (journal, done) = this_process(), opened
    tokenizer = load_tokenizer(target_model)
    prompts = encode_prompts(tokenizer, data.catalogue, samples, checkpoint.setting.cutoff, checkpoint.setting.prompt)
    models = [path and load_model(path, weights, state.device) for path in (target_model, draft_model)]
    items = served.token_ids(tokenizer).to(state.device)
    bench = MethodBenchmark(models, items, partial(make_methods, items=items, draft_width=draft_beam_size, gamma=gamma))
    mine = range(state.process_index, len(samples), state.num_processes)
    bench.run(prompts, mine, run_beam_sizes, batch_size=batch_size, warmup=warmup, done=done, keep=journal.keep)
    state.wait_for_everyone()
    if not state.is_main_process:
        return

    records = journal.read()
    tokens = dict(enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))))
    table = summarise(records, samples, served.items_of, tokens)
    machine = made_on(state.device)
    headline = (
        f"{dataset}, {split} split, {len(samples)} users, batch {batch_size}, {dtype}, "
        + (f"draft width {draft_beam_size}, gamma {gamma}, " if draft_model else "no draft, ")
        + (f"{len(stopped)} items stopped, " if stopped else "")
        + machine
    )
    widest = [r for r in records if (r.method, r.width) == (BASELINE, max(run_beam_sizes))]
    with new_folder(output, STAGE, made_of, work, machine=machine) as folder:
        save_report(folder, table, headline)
        lists = recommendations(widest, samples, served.items_of, tokens, RawNames.of(Path(data_path) / dataset))
        write_text(folder / "recommendations.jsonl", lists)
    print(f"\n{headline}\n\n{to_markdown(table, SHORT)}\n{verdict(records, bench.exact)}\nwritten to {output}")
