"""Floors of the time of a request: what reading the weights and computing the products takes on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from atspeed.checkpoints.shapes import DTYPES, Shape

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Device:
    """The peak rates of a device."""

    bandwidth: float  # bytes per second
    rate: dict[str, float]  # floating-point operations per second, by precision (dense)


TENSOR = ("bfloat16", "float16")
DEVICES = {  # the vendor's data sheets
    "A5000": Device(768e9, {"float32": 27.8e12} | dict.fromkeys(TENSOR, 111e12)),
    "A100": Device(2039e9, {"float32": 19.5e12} | dict.fromkeys(TENSOR, 312e12)),  # 80 GB, SXM
    "H100": Device(3350e9, {"float32": 67e12} | dict.fromkeys(TENSOR, 989e12)),  # SXM
    "H200": Device(4800e9, {"float32": 67e12} | dict.fromkeys(TENSOR, 989e12)),  # SXM
}


def weights(shape: Shape, vocabulary: int | None) -> tuple[int, int]:
    """Of the layers, and of the head; norms and embeddings, of which a token reads a row, are left out."""
    h, kv = shape.hidden_size, shape.hidden_size * shape.num_key_value_heads // shape.num_attention_heads
    layer = 2 * h * h + 2 * h * kv + 3 * h * shape.intermediate_size
    return shape.num_hidden_layers * layer, h * (vocabulary or shape.vocab_size or 0)


def floor(row: dict, body: int, head: int, device: Device, dtype: str, batch: int, levels: int) -> float:
    """Seconds of a request that none can beat. row: of a benchmark's table; its times are of one request of a batch."""
    scored = 1 + row["K"] * (levels - 1)  # nodes whose logits are computed
    read = row["target calls"] * (body + head) * DTYPES[dtype] / device.bandwidth / batch
    work = 2 * (row["target tokens"] * body + scored * head) / device.rate[dtype]
    return max(read, work)


def measure(dtype: str, device: torch.device, small: bool = False) -> Device:
    """What a device reaches: in a large product, and in a sum over more than its caches hold. small: in small ones."""
    import torch

    from atspeed.benchmark.runner import now

    kind, side = getattr(torch, dtype), 128 if small else 2048 if device.type == "cpu" else 8192
    square = torch.randn(side, side, dtype=kind, device=device)
    long = torch.ones(side * side if small else 200_000_000, dtype=kind, device=device)

    def best(work) -> float:
        times = []
        for _ in range(5):
            start = now(device)
            work()
            times.append(now(device) - start)
        return min(times)

    rate = 2 * side**3 / best(lambda: square @ square)
    return Device(long.numel() * kind.itemsize / best(long.sum), {dtype: rate})
