"""Stage 4: speculative beam search against gamma 0 and against transformers' `generate`, checked to be equal.

    bash script/inference.sh
    accelerate launch code/inference.py --dataset toy --target_model output/toy/target \
        --draft_model output/toy/draft-AtSpeedSModel --output_dir output/toy/results

Without a draft, gamma 0 (tree attention alone) is compared with `generate`. --stop_list FILE: items, one number a line
as in the identifier index, that stand in no list; histories may hold them, and as labels they count as missed.
Items that joined the index after training (`build_index.sh --extend`) are recommended like any other.
Writes results.csv, results.md, results.png and the recommended items of every user, recommendations.jsonl.
"""

import platform
from functools import partial
from pathlib import Path

from atspeed.checkpoints import open_checkpoint
from atspeed.methods import BASELINE, check_widths, make_methods
from atspeed.report import SHORT, recommendations, save_report, summarise, verdict
from atspeed.shapes import check_dtype
from genrec.artefacts import FACTS, make_facts
from genrec.catalogue import read_stop_list
from genrec.cli import run
from genrec.dataset import load_dataset, take
from genrec.errors import UserError
from genrec.files import write_json, write_text
from genrec.tables import to_markdown

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
    gamma: int = 3,
    batch_size: int = 1,
    max_users: int | None = None,
    warmup: int = 3,
    dtype: str = "float32",
    seed: int = 0,
) -> None:
    arguments = {k: v for k, v in locals().items() if k != "output_dir"}
    weights, output = check_dtype(dtype), Path(output_dir)
    check_widths(run_beam_sizes, draft_beam_size if draft_model else None, gamma)
    if batch_size < 1:
        raise UserError(f"--batch_size {batch_size}: must be at least 1")
    data = load_dataset(data_path, dataset, index)
    stopped = read_stop_list(Path(stop_list), data.catalogue) if stop_list else set()
    served = data.catalogue.without(stopped)
    checkpoint = open_checkpoint(target_model, "finetune_llama", "finetune_llama", data, grown=True)
    if draft_model:
        open_checkpoint(draft_model, "train", "train", data, grown=True)
    samples = take(data.samples(split, max_history=checkpoint.setting.max_history), max_users, seed)

    import torch
    from accelerate.utils import gather_object

    from atspeed.evaluate import Bench
    from atspeed.models import load_model, load_tokenizer
    from atspeed.processes import this_process
    from atspeed.prompts import encode_prompts

    state = this_process()
    tokenizer = load_tokenizer(target_model)
    prompts = encode_prompts(tokenizer, data.catalogue, samples, checkpoint.setting.cutoff)
    models = [path and load_model(path, weights).to(state.device) for path in (target_model, draft_model)]
    items = served.token_ids(tokenizer).to(state.device)
    bench = Bench(models, items, partial(make_methods, items=items, draft_width=draft_beam_size, gamma=gamma))
    mine = range(state.process_index, len(samples), state.num_processes)
    records = gather_object(bench.run(prompts, mine, run_beam_sizes, batch_size=batch_size, warmup=warmup))
    if not state.is_main_process:
        return

    tokens = dict(enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))))
    table = summarise(records, samples, served.items_of, tokens)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    headline = (
        f"{dataset}, {split} split, {len(samples)} users, batch {batch_size}, {dtype}, "
        + (f"draft width {draft_beam_size}, gamma {gamma}, " if draft_model else "no draft, ")
        + (f"{len(stopped)} items stopped, " if stopped else "")
        + machine
    )
    save_report(output, table, headline)
    made_of = {"target": checkpoint.fingerprint, "served": served.fingerprint}
    write_json(output / FACTS, make_facts(STAGE, arguments, machine=machine, **made_of))
    widest = [r for r in records if (r.method, r.width) == (BASELINE, max(run_beam_sizes))]
    write_text(output / "recommendations.jsonl", recommendations(widest, samples, served.items_of, tokens))
    print(f"\n{headline}\n\n{to_markdown(table, SHORT)}\n{verdict(records, bench.exact)}\nwritten to {output}")


if __name__ == "__main__":
    run(main)
