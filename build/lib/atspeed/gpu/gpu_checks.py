"""Checks of a GPU: exactness, capture, precision, the four stages, and times.

Each is a function that returns lines of Markdown, raises `SkippedCheck` where it cannot run, and fails by any other
exception.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from atspeed.benchmark.methods import (
    AUTO,
    AUTO_CAPTURED,
    BASELINE,
    CAPTURED,
    GENERATE,
    HYBRID,
    SPECULATIVE,
    TRIE,
)
from atspeed.benchmark.report import verdict
from atspeed.benchmark.runner import now
from atspeed.checkpoints.shapes import SHAPES
from atspeed.gpu.gpu_models import (
    CODES,
    TEXT,
    GPUScope,
    SkippedCheck,
    benchmark,
    new_program,
    random_items,
    random_llama,
    random_prompts,
    related_models,
    table,
)
from atspeed.gpu.gpu_times import times_of_llama, times_of_qwen
from atspeed.prompts import left_pad
from beamsd import Clock, Result, Trie, beam_search
from beamsd.models.numerics import TOLERANCES, exact_float32
from beamsd.models.support import check_model
from genrec.data.toy import make_toy

ROOT = Path(__file__).parents[3]


def device_and_versions(scope: GPUScope) -> list[str]:
    """The machine: devices, driver, versions, and what float32 is computed in unless told otherwise."""
    said = {
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "transformers": transformers.__version__,
        "Python": sys.version.split()[0],
        "float32 products": torch.backends.cuda.matmul.fp32_precision,
    }
    if scope.device.type == "cuda":
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            said[f"GPU {index}"] = f"{about.name}, {about.total_memory / 2**30:.0f} GiB, sm_{about.major}{about.minor}"
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        said["driver"] = driver.partition("\n")[0] or "unknown"
    else:
        said["CPU"] = f"{torch.get_num_threads()} threads"
    return table([{"what": name, "is": value} for name, value in said.items()])


def tests_on_the_gpu(scope: GPUScope) -> list[str]:
    """The tests that are skipped on machines without a GPU."""
    if not (ROOT / "tests").is_dir():
        raise SkippedCheck("the tests are in the repository, not in the package")
    if not (find_spec("pytest") and find_spec("hypothesis")):
        raise SkippedCheck("needs pytest and hypothesis")
    files = ["test_search.py"] if scope.small else ["test_search.py", "test_program.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-k", "cuda", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(f"tests/beamsd/{file}" for file in files)], cwd=ROOT, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT / "code")}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise AssertionError(done.stdout[-3000:])
    return [last_line(done.stdout)]


def equality_in_float32(scope: GPUScope) -> list[str]:
    """Lists and scores of every way to decode against `generate`, on a target that its draft resembles."""
    shape = SHAPES["tiny"] if scope.small else SHAPES["llama-160m"]
    target, draft = related_models(shape, scope, torch.float32)
    requests = scope.take(200, 4)
    prompts = random_prompts(requests, (5, 9) if scope.small else (60, 120))
    names = [GENERATE, BASELINE, SPECULATIVE, TRIE, HYBRID, AUTO]
    if scope.device.type == "cuda":  # compiling for a CPU takes minutes
        names += [CAPTURED, AUTO_CAPTURED]
    bench = benchmark(target, draft, random_items(scope), names, warm=not scope.small)
    records = bench.run(prompts, range(requests), (scope.take(10, 3),), batch_size=scope.take(8, 2), warmup=0)
    levels = [record.accepted for record in records if record.method == SPECULATIVE and record.accepted is not None]
    return [
        verdict(records, bench.exact),
        f"{requests} requests, {len(names)} ways to decode, drafted levels accepted {sum(levels) / len(levels):.2f}",
    ]


def precision(scope: GPUScope) -> list[str]:
    """How far products are from float64's, and that the check of models takes each for what it is."""
    device, side = scope.device, scope.take(2048, 256)
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    exact = a.double() @ b.double()

    def error(product: Tensor) -> float:
        return ((product.double() - exact).abs().amax() / exact.abs().amax()).item()

    with exact_float32():
        errors = {"float32": error(a @ b)}
    errors["bfloat16"] = error(a.bfloat16() @ b.bfloat16())
    setting = torch.backends.cuda.matmul
    before, setting.fp32_precision = setting.fp32_precision, "tf32"
    try:
        errors["tf32"] = error(a @ b)
        check_model(random_llama(device, torch.float32))
    finally:
        setting.fp32_precision = before
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        check_model(random_llama(device, dtype))
    with torch.autocast(device.type, torch.bfloat16):
        check_model(random_llama(device, torch.float32))
    assert errors["float32"] < 1e-5, f"float32 products are off by {errors['float32']:.1e} with TF32 switched off"
    return table(
        [
            {"precision": name, "largest error of a product": f"{value:.1e}", "tolerance": f"{TOLERANCES[name]:g}"}
            for name, value in errors.items()
        ]
    )


def capture(scope: GPUScope) -> list[str]:
    """Captured decoding against decoding without, batch after batch; and a model with experts."""
    target, draft = related_models(SHAPES["tiny" if scope.small else "llama-160m"], scope, torch.float32)
    trie = Trie(random_items(scope).to(scope.device))
    rows = []
    for batch in (1, 8):
        for drafter in ("none", "trie", "model"):
            program = new_program(scope)

            def decode(prompts: list[list[int]], **how: Any) -> tuple[Result, float]:
                ids, mask = (each.to(scope.device) for each in left_pad(prompts))
                start = now(scope.device)
                result = beam_search(
                    target, ids, mask, trie=trie, width=5, draft=draft, drafter=drafter, gamma=3, **how  # noqa: B023
                )  # fmt: skip
                return result, now(scope.device) - start

            prompts = random_prompts(scope.take(20, 2) * batch, (20, 100))
            batches = [prompts[i : i + batch] for i in range(0, len(prompts), batch)]
            for some in batches:  # captured here, replayed below
                decode(some, program=program)
            plain, captured = ([decode(some, **how) for some in batches] for how in ({}, {"program": program}))
            for (expected, _), (got, _) in zip(plain, captured, strict=True):
                assert torch.equal(expected.sequences, got.sequences), f"{drafter}, batch {batch}: other lists"
                torch.testing.assert_close(expected.scores, got.scores, atol=1e-4, rtol=1e-5)
            off, on = (1e3 * sum(seconds for _, seconds in each) / len(batches) for each in (plain, captured))
            rows.append(
                {
                    "drafter": drafter, "batch": batch, "ms without": off, "ms captured": on, "times": off / on,
                    "graphs": program.recorded, "MB": program.nbytes / 1e6,
                }
            )  # fmt: skip
    return [*table(rows), "", mixture_of_experts(scope, trie)]


def mixture_of_experts(scope: GPUScope, trie: Trie) -> str:
    config = AutoConfig.for_model(
        "mixtral", vocab_size=TEXT + 4 * CODES, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, initializer_range=0.3, sliding_window=None,
    )  # fmt: skip
    with torch.device(scope.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    program, ids = new_program(scope), torch.tensor(random_prompts(2, (20, 20))).to(scope.device)
    plain, captured = (beam_search(model, ids, trie=trie, width=5, program=each) for each in (None, program))
    assert torch.equal(plain.sequences, captured.sequences), "a mixture of experts: other lists"
    return f"A mixture of experts: {program.recorded} graphs, the lists are equal."


def clock(scope: GPUScope) -> list[str]:
    """That the parts of a search, timed on the device, are within the whole."""
    target, draft = related_models(SHAPES["tiny"], scope, torch.float32)
    ids, trie = torch.tensor(random_prompts(2, (20, 20))).to(scope.device), Trie(random_items(scope).to(scope.device))
    for _ in range(2):  # the first sets libraries up
        measured, start = Clock(scope.device), now(scope.device)
        beam_search(target, ids, trie=trie, width=5, draft=draft, gamma=3, clock=measured)
        whole = now(scope.device) - start
    parts = measured.seconds()
    assert 0 < sum(parts.values()) <= whole, (parts, whole)
    return [", ".join(f"{name} {1e3 * part:.2f} ms" for name, part in parts.items()) + f", of {1e3 * whole:.2f} ms"]


def stages(scope: GPUScope) -> list[str]:
    """The four stages on the toy data with their default precision, bf16 on a GPU that has it."""
    needed = ("accelerate", "datasets", "fire", "matplotlib", "pandas", "peft", "sentencepiece")
    if missing := [name for name in needed if find_spec(name) is None]:
        raise SkippedCheck(f"needs {', '.join(missing)}: bash script/setup.sh")
    base, data = str(scope.folder / "base"), scope.folder / "data" / "toy"
    make_toy(n_items=scope.take(1000, 200), n_users=scope.take(2000, 120)).save(data)
    variables = {
        "DATASET": "toy", "DATA_PATH": str(data.parent), "OUTPUT_DIR": str(scope.folder),
        "LOG_DIR": str(scope.folder / "log"), "TARGET_BASE": base, "DRAFT_BASE": base, "PYTHON": sys.executable,
        "NUM_PROCESSES": "1", "FULL": "true", "EPOCHS": "1", "BATCH_SIZE": "32", "MICRO_BATCH_SIZE": "32",
        "LEARNING_RATE": "2e-3", "WARMUP_STEPS": "5", "SELECT_USERS": str(scope.take(200, 8)),
        "RUN_BEAM_SIZES": "1,5",
    }  # fmt: skip
    init = ["atspeed", "init-model", "--output", base, "--shape", "tiny", "--layers", str(scope.take(4, 1))]
    start(variables, sys.executable, "-m", *init)
    rows = []
    for stage in ("finetune_llama", "generate_teacher_data", "train", "inference"):
        begin = now(torch.device("cpu"))
        said = start(variables, "bash", str(ROOT / "script" / f"{stage}.sh"))
        rows.append({"stage": stage, "seconds": now(torch.device("cpu")) - begin})
    lists = next(line for line in said.splitlines() if "lists identical" in line)
    return [*table(rows), "", lists.strip()]


def start(variables: dict[str, str], *command: str) -> str:
    own = {"PYTHONPATH": f"{ROOT / 'code'}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | own | variables, text=True, check=False, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise AssertionError(done.stdout[-3000:])
    return done.stdout


CHECKS: dict[str, Callable[[GPUScope], list[str]]] = {
    "device and versions": device_and_versions,
    "tests on the GPU": tests_on_the_gpu,
    "precision": precision,
    "clock": clock,
    "equality in float32": equality_in_float32,
    "capture": capture,
    "four stages": stages,
    "times of LLaMA-160M, float32": partial(times_of_llama, name="llama-160m", dtype="float32", seconds=40),
    "times of LLaMA-160M, bfloat16": partial(times_of_llama, name="llama-160m", dtype="bfloat16", seconds=40),
    "times of LLaMA-7B, bfloat16": partial(times_of_llama, name="llama-7b", dtype="bfloat16", seconds=90),
    "times of Qwen3-1.7B, bfloat16": partial(times_of_qwen, seconds=40),
}


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
