"""Times on a GPU, for shapes of published models, beside `generate`, gamma 0 and their floors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from atspeed.benchmark.floors import Device, floor, measure, weights
from atspeed.benchmark.methods import BASELINE, CAPTURED, GENERATE, SPECULATIVE, TRIE
from atspeed.benchmark.runner import Record, now
from atspeed.checkpoints.shapes import DTYPES, SHAPES, Shape
from atspeed.gpu.gpu_models import (
    CODES,
    TEXT,
    GPUScope,
    SkippedCheck,
    benchmark,
    random_items,
    random_prompts,
    related_models,
    table,
)


def times_of_llama(scope: GPUScope, name: str, dtype: str, seconds: float) -> list[str]:
    """Times of a published shape that has the behaviour of a random small model."""
    shape = SHAPES["tiny" if scope.small else name]
    check_memory(scope, shape, dtype)
    target, draft = related_models(shape, scope, getattr(torch, dtype))
    names = (GENERATE, BASELINE, SPECULATIVE, TRIE) + (() if scope.device.type == "cpu" else (CAPTURED,))
    return times(
        scope, target, draft, names, items=random_items(scope), prompt=scope.take(100, 10), dtype=dtype,
        widths=(1, 5) if scope.small else (1, 5, 20, 50), batches=(1, 2) if scope.small else (1, 8, 32),
        seconds=seconds,
    )  # fmt: skip


def times_of_qwen(scope: GPUScope, seconds: float) -> list[str]:
    """Times of Qwen3-1.7B's shape for a long context, a wide beam and three tokens."""
    vocabulary = TEXT + 3 * CODES if scope.small else 151936
    sizes = dict(
        hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128,
    ) if not scope.small else dict(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16,
    )  # fmt: skip
    config = AutoConfig.for_model("qwen3", vocab_size=vocabulary, tie_word_embeddings=True, **sizes)
    with torch.device(scope.device):
        target = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    names = (GENERATE, BASELINE, TRIE) + (() if scope.device.type == "cpu" else (CAPTURED,))
    return times(
        scope, target, None, names, items=random_items(scope, levels=3), prompt=scope.take(1000, 40),
        dtype="bfloat16", widths=(scope.take(256, 8),), batches=(1,), seconds=seconds,
    )  # fmt: skip


def times(
    scope: GPUScope, target: PreTrainedModel, draft: PreTrainedModel | None, names: Sequence[str], *, items: Tensor,
    prompt: int, dtype: str, widths: Sequence[int], batches: Sequence[int], seconds: float,
) -> list[str]:  # fmt: skip
    """A table with a row a batch, K and method, measured within about so many seconds."""
    reached = measure(dtype, scope.device, scope.small)
    share = seconds / len(widths) / len(batches)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for batch in batches:
            for width in widths:
                rows += cell(scope, target, draft, names, items, prompt, dtype, width, batch, share, reached)
    about = target.config.get_text_config()
    size = sum(weight.numel() for weight in target.parameters())
    return [
        f"{size / 1e6:.0f} M weights in {about.num_hidden_layers} layers, {dtype}, prompts of {prompt} tokens, "
        f"{len(items)} items of {items.shape[1]} tokens; {reached.rate[dtype] / 1e12:.1f} TFLOP/s and "
        f"{reached.bandwidth / 1e9:.0f} GB/s reached by a product and a sum, from which the floors follow.",
        "",
        *table(rows),
    ]


def cell(
    scope: GPUScope, target: PreTrainedModel, draft: PreTrainedModel | None, names: Sequence[str], items: Tensor,
    prompt: int, dtype: str, width: int, batch: int, seconds: float, reached: Device,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The rows of one batch size and K. Where memory ends, `generate`, which needs the most, is left out."""
    prompts = random_prompts(20 * batch, (prompt, prompt))

    def measured(names: Sequence[str]) -> list[Record]:
        bench = benchmark(target, draft, items, names)
        begin = now(scope.device)
        bench.run(prompts[:batch], range(batch), (width,), batch_size=batch, warmup=1)
        batches = 1 if scope.small else max(3, min(20, int(2 * seconds / (now(scope.device) - begin))))
        return bench.run(prompts, range(batches * batch), (width,), batch_size=batch, warmup=0)

    for left in (names, names[1:]):
        try:
            records = measured(left)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            yield {"batch": batch, "K": width, "method": f"{', '.join(left)}: out of memory"}
            continue
        yield from summed_up(records, target, items.shape[1], dtype, width, batch, reached)
        return


def summed_up(
    records: Sequence[Record], target: PreTrainedModel, levels: int, dtype: str, width: int, batch: int,
    reached: Device,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    by_method: dict[str, list[Record]] = {}
    for record in records:
        by_method.setdefault(record.method, []).append(record)
    body, head = products(target)
    middle = {name: torch.tensor([record.seconds for record in own]).median().item() for name, own in by_method.items()}
    for name, own in by_method.items():
        spent = torch.tensor([record.seconds * batch for record in own])  # of a batch
        mean = {
            "K": width,
            "target calls": sum(record.target_calls for record in own) / len(own),
            "target tokens": sum(record.target_tokens or 0 for record in own) / len(own),
        }
        least = floor(mean, body, head, reached, dtype, batch, levels)
        accepted = [record.accepted for record in own if record.accepted is not None]
        yield {
            "batch": batch, "K": width, "method": name, "ms p50": 1e3 * spent.quantile(0.5).item(),
            "ms p99": 1e3 * spent.quantile(0.99).item(), "tokens/s": round(width * levels / middle[name]),
            "× generate": middle[GENERATE] / middle[name] if GENERATE in middle else None,
            "× gamma 0": middle[BASELINE] / middle[name], "× floor": middle[name] / least,
            "accepted": sum(accepted) / len(accepted) if accepted else None, "batches": len(own) // batch,
        }  # fmt: skip


def products(model: PreTrainedModel) -> tuple[int, int]:
    """Weights of the layers, and of the head, that a token is multiplied by."""
    head = model.get_output_embeddings().weight.numel()
    layers = sum(weight.numel() for name, weight in model.named_parameters() if "layers" in name and weight.dim() == 2)
    return layers, head


def check_memory(scope: GPUScope, shape: Shape, dtype: str) -> None:
    if scope.device.type == "cpu":
        return
    body, head = weights(shape, TEXT + 4 * CODES)
    needed, there = 2.5 * (body + 2 * head) * DTYPES[dtype], torch.cuda.mem_get_info(scope.device)[0]
    if needed > there:
        raise SkippedCheck(f"needs {needed / 1e9:.0f} GB of free GPU memory, {there / 1e9:.0f} GB are there")
