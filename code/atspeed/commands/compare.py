r"""Compare drafts: every one under strict and relaxed verification, beside gamma 0 and `generate`.

    bash script/compare.sh
    atspeed compare --dataset beauty --target_model output/beauty/target \
        --output_dir output/beauty/compared \
        --draft_models output/beauty/draft-SFTModel,output/beauty/draft-AtSpeedSModel

All methods take turns on every request of one run. Strict lists must equal those of `generate`, and all items must be
in the catalogue, or the run ends. Relaxed lists are drawn --draws times, for --drawn_users. Seeds are averaged, with
intervals over users. Writes comparison.csv, comparison.md and comparison.png, intervals.csv, differences.csv (paired),
times.csv and users.parquet to a folder of --output_dir that is named by the settings and a hash of the drafts. A run
that was interrupted goes on where it was. `atspeed combine` makes one of several targets' comparisons.
"""

import random
from functools import partial
from pathlib import Path

from atspeed.benchmark.comparison import draft_name, save_comparison
from atspeed.benchmark.methods import COUPLED, GAMMA, RELAXED, STRICT, check_fit, check_widths, draft_methods
from atspeed.benchmark.report import results_name, short, timings, users_name, verdict
from atspeed.benchmark.significance import by_user
from atspeed.checkpoints.checkpoint import open_checkpoint
from atspeed.checkpoints.shapes import check_dtype
from atspeed.training.objectives import make_objective
from genrec.data.dataset import load_dataset, take
from genrec.runtime.artefacts import is_done, new_folder, read_facts
from genrec.runtime.errors import UserError
from genrec.runtime.machine import made_on

STAGE = "compare"
VERIFICATIONS = (STRICT, RELAXED, COUPLED)


def main(
    target_model: str,
    draft_models: tuple[str, ...],
    output_dir: str,
    dataset: str,
    data_path: str = "data",
    index: str | None = None,
    run_beam_sizes: tuple[int, ...] = (1, 3, 5, 10, 20),
    draft_beam_size: int = 40,
    gamma: int = GAMMA,
    constrained_softmax: bool = True,
    share_prefix: bool = False,
    batch_size: int = 1,
    max_users: int | None = None,
    verifications: tuple[str, ...] = (STRICT, RELAXED),
    draws: int = 1,
    drawn_users: int | None = None,
    dtype: str = "float32",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    weights = check_dtype(dtype)
    check_widths(run_beam_sizes, draft_beam_size)
    if not verifications or not set(verifications) <= set(VERIFICATIONS):
        raise UserError(f"--verifications {','.join(verifications)}: choose from {', '.join(VERIFICATIONS)}")
    data = load_dataset(data_path, dataset, index)
    check_fit(data.catalogue, "run_beam_sizes", *run_beam_sizes, gamma=gamma)
    checkpoint = open_checkpoint(target_model, "finetune_llama", "finetune_llama", data)
    for path in draft_models:
        if " " in path and not Path(path).exists():
            raise UserError(f"--draft_models {path}: no such folder; give folders with commas between them")
    names = [name_of(path) for path in draft_models]
    if len(set(names)) < len(names):
        raise UserError(f"--draft_models: two have one class and seed ({', '.join(names)}); compare them in two runs")
    drafts = [open_checkpoint(path, "train", "train", data).fingerprint for path in draft_models]
    samples = take(data.samples("test", max_history=checkpoint.setting.max_history), max_users, seed)
    made_of = {
        "dataset": dataset, "target": checkpoint.fingerprint, "drafts": drafts, "served": data.catalogue.fingerprint,
        "users": short(samples), "run_beam_sizes": list(run_beam_sizes), "draft_beam_size": draft_beam_size,
        "gamma": gamma, "constrained_softmax": constrained_softmax, "batch_size": batch_size, "dtype": dtype,
        "verifications": list(verifications), "draws": draws, "drawn_users": drawn_users,
        "share_prefix": share_prefix,
    }  # fmt: skip
    output = Path(output_dir) / results_name(
        run_beam_sizes, f"N{draft_beam_size}_gamma{gamma}", [batch_size], dtype, users_name(max_users, seed),
        "" if constrained_softmax else "whole-vocabulary", "" if draws == 1 else f"{draws}draws",
        f"drafts-{short([drafts, verifications, drawn_users])}",
    )  # fmt: skip
    work = output.with_name(output.name + ".work")
    if is_done(output, work, STAGE, made_of, overwrite):
        return

    from atspeed.benchmark.journal import open_journal
    from atspeed.benchmark.runner import MethodBenchmark, Record
    from atspeed.checkpoints.loading import load_model, load_tokenizer
    from atspeed.processes import this_process
    from atspeed.prompts import encode_prompts
    from beamsd import Prefix

    opened = open_journal(output, work, STAGE, made_of, overwrite, Record, "width", "request")
    if not opened:
        return
    device, (journal, done) = this_process().device, opened
    tokenizer = load_tokenizer(target_model)
    prompts = encode_prompts(tokenizer, data.catalogue, samples, checkpoint.setting.cutoff, checkpoint.setting.prompt)
    models = [load_model(path, weights, device) for path in (target_model, *draft_models)]
    items = data.catalogue.token_ids(tokenizer).to(device)
    make = partial(
        draft_methods, names=names, items=items, draft_width=draft_beam_size, gamma=gamma,
        constrained_softmax=constrained_softmax, verifications=verifications,
        prefix=Prefix.of(prompts) if share_prefix else None,
    )  # fmt: skip
    bench = MethodBenchmark(models, items, make)
    requests, chosen = list(range(len(prompts))), None
    if drawn_users is not None:
        chosen = set(random.Random(seed).sample(requests, min(drawn_users, len(requests))))
    if batch_size > 1:
        requests.sort(key=lambda request: len(prompts[request]))  # little padding
    bench.run(
        prompts, requests, run_beam_sizes, batch_size=batch_size, warmup=-(-3 // batch_size), done=done,
        keep=journal.keep, draws=draws, drawn=chosen,
    )  # fmt: skip

    records = journal.read()
    tokens = dict(enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))))
    users = by_user(records, samples, data.catalogue.items_of, tokens).assign(target=checkpoint.fingerprint[:8])
    times = timings(records).assign(target=checkpoint.fingerprint[:8])
    machine = made_on(device)
    ranked = "legal tokens" if constrained_softmax else "whole vocabulary"
    headline = (
        f"{dataset}, {len(samples)} test users, batch {batch_size}, {dtype}, draft width {draft_beam_size}, "
        f"gamma {gamma}, drafts rank by the softmax over the {ranked}, seeds of the drafts "
        f"{', '.join(sorted({name.split()[1] for name in names}))}, {draws} draws"
        f"{', what all prompts begin with read once' if share_prefix else ''}, {machine}"
    )
    exact = verdict([r for r in records if not bench.methods[r.method].draws], bench.exact)
    facts = dict(machine=machine, headline=headline, verdict=exact)
    with new_folder(output, STAGE, made_of, work, **facts) as folder:
        print("\n" + save_comparison(folder, users, times, headline, exact))
    print(f"written to {output}")


def name_of(path: str) -> str:
    """The class, what it compares and leaves out if that is not its default, and the seed of a trained draft."""
    made = read_facts(Path(path), "train", "train")["arguments"]
    over, constrained = made.get("alignment_over"), made.get("constrained_alignment")
    label = [made["model_class"]]
    if over is not None or constrained is not None:
        default = make_objective(made["model_class"]).alignment_over
        asked = make_objective(
            made["model_class"], alignment_over=over, constrained_alignment=constrained
        ).alignment_over
        label += [asked] if asked != default else []
    return draft_name("-".join(label + ([] if made.get("density", True) else ["no-density"])), made["seed"])
