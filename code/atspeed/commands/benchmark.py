r"""Time every way to decode: methods x K x batch x precision, after checking that their lists are equal.

    bash script/benchmark.sh
    atspeed benchmark --dataset beauty --target_model output/beauty/target \
        --draft_model output/beauty/draft-AtSpeedSModel --output_dir output/beauty/benchmark
    atspeed benchmark --dataset beauty --shape llama-160m --output_dir output/random  # random weights

Methods take turns on every batch of one run. In float32 the lists of all methods that promise it must equal those of
`generate`, or the run ends; in other precisions equal lists are counted. Writes a CSV, a Markdown page and a plot
for each batch size and precision, "waits" of all batch sizes (what a person waits, and requests a second), and what the
auto drafter chose and why, to a folder of --output_dir that is named by the settings and a hash of them all; what is
there of the same settings is kept.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from atspeed.benchmark.methods import (
    ALL,
    AUTO_CAPTURED,
    BASELINE,
    CAPTURED,
    GAMMA,
    GENERATE,
    ON_REQUEST,
    check_fit,
    make_methods,
)
from atspeed.benchmark.peers import check_beamsd, check_vllm, start_beamsd, start_vllm
from atspeed.benchmark.report import results_name, save_benchmark, short, timings, verdict
from atspeed.benchmark.waits import save_waits, waits
from atspeed.checkpoints.checkpoint import Checkpoint, open_checkpoint
from atspeed.checkpoints.shapes import check_dtype, check_shape
from atspeed.template import LC_REC
from genrec.data.dataset import Dataset, load_dataset, take
from genrec.reports.tables import to_markdown
from genrec.runtime.artefacts import already_done, make_facts, read_facts, write_facts
from genrec.runtime.errors import UserError
from genrec.runtime.machine import machine_name, made_on

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from atspeed.benchmark.methods import Method
    from atspeed.benchmark.runner import MethodBenchmark, Record

STAGE = "benchmark"
SHOWN = ("method", "K", "ms", "p95 ms", "speed-up", "over gamma 0", "target calls", "target tokens", "peak MB")


def main(
    dataset: str,
    output_dir: str,
    target_model: str | None = None,
    draft_model: str | None = None,
    shape: str | None = None,
    draft_shape: str | None = None,
    data_path: str = "data",
    index: str | None = None,
    methods: tuple[str, ...] | None = None,
    run_beam_sizes: tuple[int, ...] = (1, 3, 5, 10, 20, 50),
    batch_sizes: tuple[int, ...] = (1,),
    dtypes: tuple[str, ...] = ("float32",),
    draft_beam_size: int | None = None,
    gamma: int = GAMMA,
    nodes: int | None = None,
    constrained_softmax: bool = True,
    beamsd: str | None = None,
    beamsd_python: str | None = None,
    vllm_python: str | None = None,
    share_prefix: bool = True,
    requests: int = 20,
    warmup: int = 2,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    check(methods or ALL, target_model, shape, draft_model, draft_shape)
    for dtype in dtypes:
        check_dtype(dtype)
    check_peers(beamsd, beamsd_python, vllm_python, target_model, dtypes)
    data = load_dataset(data_path, dataset, index)
    check_fit(data.catalogue, "run_beam_sizes", *run_beam_sizes, gamma=gamma)
    opened = [path and check_model(path, data) for path in (target_model, draft_model)]
    target_hash, draft_hash = (each and each.fingerprint for each in opened)
    setting = opened[0] and opened[0].setting
    samples = take(data.samples("test"), requests, seed)
    made_of = {
        "dataset": dataset, "target": target_hash or shape, "draft": draft_hash or draft_shape,
        "served": data.catalogue.fingerprint, "users": short(samples), "methods": list(methods or ()),
        "run_beam_sizes": list(run_beam_sizes), "draft_beam_size": draft_beam_size, "gamma": gamma, "nodes": nodes,
        "constrained_softmax": constrained_softmax,
        "batch_sizes": list(batch_sizes), "dtypes": list(dtypes), "share_prefix": share_prefix, "warmup": warmup,
        "seed": seed, "beamsd": beamsd and short((Path(beamsd) / "atspeed" / "beamsd.py").read_text()),
        "vllm": bool(vllm_python),
    }  # fmt: skip
    output = Path(output_dir) / results_name(
        run_beam_sizes, f"gamma{gamma}", batch_sizes, "-".join(dtypes), f"{requests}requests-seed{seed}",
        short(made_of),
    )  # fmt: skip
    if already_done(output, output, STAGE, made_of, overwrite):
        return

    import torch

    from atspeed.benchmark.runner import MethodBenchmark
    from atspeed.prompts import encode_prompts
    from beamsd import Prefix

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Compiling for a CPU takes half a minute for every number of tokens, so it must be asked for.
    left_out = ON_REQUEST if device.type == "cuda" else (*ON_REQUEST, CAPTURED, AUTO_CAPTURED)
    methods = methods or tuple(name for name in ALL if name not in left_out)
    for dtype in dtypes:
        target, tokenizer = open_model(target_model, shape, data, dtype, seed, device)
        draft, items = None, data.catalogue.token_ids(tokenizer).to(device)
        if draft_model or draft_shape:
            draft, _ = open_model(draft_model, draft_shape, data, dtype, seed + 1, device)
        prompts = encode_prompts(tokenizer, data.catalogue, samples, 512, setting.prompt if setting else LC_REC)
        prefix = Prefix.of(prompts) if share_prefix else None
        models = f"target {describe(target_model, shape, target)}, draft {describe(draft_model, draft_shape, draft)}"
        make = partial(
            make_methods, items=items, draft_width=draft_beam_size, gamma=gamma, nodes=nodes, names=methods,
            prefix=prefix, constrained_softmax=constrained_softmax,
        )  # fmt: skip
        peers, notes, threads = [], [], torch.get_num_threads()
        if beamsd and beamsd_python and target_model:
            peers += [start_beamsd(beamsd, beamsd_python, target_model, draft_model, items, threads)]
        if vllm_python and target_model:
            peers += [start_vllm(vllm_python, target_model, prompts, items.shape[1], run_beam_sizes, threads)]
        for peer in peers:
            versions = ", ".join(f"{name} {version}" for name, version in peer.versions.items())
            notes += [f"{peer.name}: {versions}, {peer.how}; its times are those of its decoding alone."]
            make = partial(_with_peer, make, peer.methods(draft_beam_size, gamma))
        for batch_size in batch_sizes:
            name = f"batch-{batch_size}-{dtype}"
            if (output / f"{name}.png").exists():  # of a run that was cut off later
                continue
            bench = MethodBenchmark((target, draft), items, make)
            table, said = measure(bench, prompts, run_beam_sizes, batch_size, warmup)
            headline = (
                f"{dataset}, {len(prompts)} requests, batch {batch_size}, {dtype}, {models}, "
                f"{len(prefix or ())} tokens of every prompt read once for all, {made_on(device)}, seed {seed}"
            )
            save_benchmark(output, name, table, headline, "\n".join([*said[:1], *notes, *said[1:]]))
            print("\n".join(["", headline, "", to_markdown(table, SHOWN), *said[:1]]))
        headline = f"{dataset}, {len(prompts)} requests, {dtype}, {models}, {made_on(device)}, seed {seed}"
        save_waits(output, waits(output, dtype), headline, f"waits-{dtype}")
        for peer in peers:
            peer.close()
    write_facts(output, make_facts(STAGE, made_of, machine=machine_name(device)))
    print(f"written to {output}")


def measure(
    bench: "MethodBenchmark", prompts: list[list[int]], widths: tuple[int, ...], batch_size: int, warmup: int
) -> "tuple[pd.DataFrame, list[str]]":
    """One row a K and method; and what is to be said of the lists, first, and of each method that decides."""
    records = bench.run(prompts, range(len(prompts)), widths, batch_size=batch_size, warmup=warmup)
    table = timings(records)
    memory = {k: bench.memory(prompts[:batch_size], k) for k in widths}
    table["peak MB"] = [memory[row.K][row.method] for row in table.itertuples()]
    table["requests/s"] = 1e3 / table["ms"]
    agreed = [verdict([r for r in records if bench.methods[r.method].promises], bench.exact)]
    agreed += [_agreement(name, records, bench.legal) for name, method in bench.methods.items() if method.peer]
    notes = ["\n".join(agreed)]
    notes += [f"\n{name}:\n\n{m.auto.report()}" for name, m in bench.methods.items() if m.auto]
    return table, notes


def _with_peer(
    make: "Callable[..., dict[str, Method]]", peer: "dict[str, Method]", *models: object
) -> "dict[str, Method]":
    return make(*models) | peer


def _agreement(name: str, records: "list[Record]", legal: set[tuple[int, ...]]) -> str:
    """How many lists of other software are those of `generate`, in order, and what of them is no item."""
    lists: dict[str, dict] = {
        method: {(r.width, r.request): r.sequences for r in records if r.method == method}
        for method in (name, GENERATE)
    }
    same = sum(found == lists[GENERATE][key] for key, found in lists[name].items())
    sequences = [tuple(sequence) for found in lists[name].values() for sequence in found]
    invalid = sum(sequence not in legal for sequence in sequences)
    no_item = f"; {invalid} of {len(sequences)} sequences are no item" if invalid else ""
    return f"{name}: {same} of {len(lists[name])} lists are those of generate{no_item}."


def check(
    methods: tuple[str, ...], target: str | None, shape: str | None, draft: str | None, draft_shape: str | None
) -> None:
    """Raises UserError for flags that do not fit together, before any work."""
    unknown = set(methods) - set(ALL)
    if unknown or not {GENERATE, BASELINE} <= set(methods):
        raise UserError(
            f"--methods {','.join(methods)}: choose from {', '.join(ALL)}, with {GENERATE} and {BASELINE} among them"
        )
    if (target is None) == (shape is None) or (draft and draft_shape):
        raise UserError("give --target_model or --shape, and at most one of --draft_model and --draft_shape")
    for name in filter(None, (shape, draft_shape)):
        check_shape(name)


def check_peers(
    beamsd: str | None, beamsd_python: str | None, vllm_python: str | None, target: str | None, dtypes: tuple[str, ...]
) -> None:
    """Raises UserError for other software that is not there, or cannot be compared with, before any work."""
    if not (beamsd or beamsd_python or vllm_python):
        return
    if bool(beamsd) != bool(beamsd_python) or not target:
        raise UserError(
            "BeamSD and vLLM run on checkpoints: give --target_model, and --beamsd and --beamsd_python together"
        )
    if dtypes != ("float32",):
        raise UserError(f"--dtypes {','.join(dtypes)}: BeamSD and vLLM are compared in float32")
    if beamsd and beamsd_python:
        check_beamsd(beamsd, beamsd_python)
    if vllm_python:
        check_vllm(vllm_python)


def check_model(path: str, data: Dataset) -> Checkpoint:
    """Raises UserError if `path` is neither a target nor a draft, trained on this very data set."""
    stage = read_facts(Path(path), ("finetune_llama", "train"), "finetune_llama")["stage"]
    return open_checkpoint(path, stage, stage, data)


def open_model(
    path: str | None, shape: str | None, data: Dataset, dtype: str, seed: int, device: "torch.device"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A checkpoint of ours, or random weights of a shape."""
    from atspeed.checkpoints.loading import load_model, load_tokenizer, random_model

    if path is None:
        assert shape is not None
        model, tokenizer = random_model(shape, data.catalogue, dtype, seed)
        return model.to(device), tokenizer
    return load_model(path, dtype, device), load_tokenizer(path)


def describe(path: str | None, shape: str | None, model: "PreTrainedModel | None") -> str:
    """The model in a few words; whether it was grown or is random."""
    if model is None:
        return "none"
    size = f"{model.num_parameters() / 1e6:.1f} M weights"
    if path is None:
        return f"{shape} ({size}, random)"
    grown = read_facts(Path(path), ("finetune_llama", "train"), "finetune_llama").get("grown")
    folder = "/".join(Path(path).resolve().parts[-2:])  # tables are passed on, and say nothing of the machine's folders
    return f"{folder} ({size}{', grown from a smaller one' if grown else ''})"
