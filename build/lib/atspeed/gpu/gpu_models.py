"""What the checks of a GPU run on: models in memory, items and prompts, all random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from atspeed.benchmark.growth import grown
from atspeed.benchmark.methods import Method, make_methods
from atspeed.benchmark.runner import MethodBenchmark
from atspeed.checkpoints.shapes import SHAPES, Shape
from beamsd import Program

CODES = 256  # of a level of an identifier
TEXT = 32000  # tokens before those of the identifiers


class SkippedCheck(Exception):
    """A check that cannot run here; its text says why."""


@dataclass(frozen=True)
class GPUScope:
    """What the checks run on, and how much of it."""

    device: torch.device
    small: bool  # all of the code in seconds, on a CPU
    folder: Path  # for files of the checks, which is removed afterwards

    def take(self, whole: int, small: int) -> int:
        return small if self.small else whole


def benchmark(
    target: PreTrainedModel, draft: PreTrainedModel | None, items: Tensor, names: Sequence[str], warm: bool = True
) -> MethodBenchmark:
    """warm: False leaves out the requests by which the automatic choice learns."""
    items = items.to(target.device)

    def make(target: PreTrainedModel, draft: PreTrainedModel | None) -> dict[str, Method]:
        methods = make_methods(target, draft, items, None, 3, names=names)
        return methods if warm else {name: replace(method, warmup=0) for name, method in methods.items()}

    return MethodBenchmark((target, draft), items, make)


def related_models(shape: Shape, scope: GPUScope, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A target of a shape, and a draft that often agrees with it: both grown from a small model and its noisy copy."""
    draft_shape = SHAPES["tiny" if scope.small else "llama-68m"]
    small = random_llama(torch.device("cpu"), torch.float32)
    target = grown(small, shape, dtype, scope.device)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in small.parameters():
            weight += 0.05 * weight.std() * torch.randn(weight.shape, generator=generator)
    return target, grown(small, draft_shape, dtype, scope.device, seed=1)


def random_llama(device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    """A small LLaMA with logits far enough apart to make ties rare."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TEXT + 4 * CODES, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, initializer_range=0.3, max_position_embeddings=2048, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(device, dtype).eval()


def random_items(scope: GPUScope, levels: int = 4) -> Tensor:
    """Distinct identifiers (n_items, levels), a level's codes apart from the others'."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(CODES, (scope.take(12000, 300), levels), generator=generator)
    return (codes + TEXT + CODES * torch.arange(levels)).unique(dim=0)


def random_prompts(count: int, lengths: tuple[int, int]) -> list[list[int]]:
    """Prompts of random text, with a least and a greatest number of tokens."""
    generator = torch.Generator().manual_seed(0)
    low, high = lengths
    return [
        torch.randint(
            3, TEXT, (int(torch.randint(low, high + 1, (), generator=generator)),), generator=generator
        ).tolist()
        for _ in range(count)
    ]


def new_program(scope: GPUScope) -> Program:
    """On a CPU static shapes without compiling, which takes minutes there."""
    return Program() if scope.device.type == "cuda" else Program(compiler=lambda body: body)


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A Markdown table of rows that may lack some columns; pandas may not be there."""
    columns = list(dict.fromkeys(name for row in rows for name in row))

    def shown(value: object) -> str:
        if value is None:
            return "–"
        return f"{value:.2f}" if isinstance(value, float) else str(value)

    lines = [columns, ["---"] * len(columns), *([shown(row.get(name)) for name in columns] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]
