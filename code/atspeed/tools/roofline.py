r"""Set each measured time beside its floor, and predict other devices, from the calls and tokens that were counted.

    python -m atspeed.tools.roofline --results docs/results/benchmark/batch-1-float32.csv --shape llama-160m \
        --dtype float32
    python -m atspeed.tools.roofline --results docs/results/benchmark/batch-1-float32.csv --shape llama-7b \
        --dtype bfloat16 --devices A5000,A100,H200

The floor of a request is the larger of two times: reading the target's weights once a call, and the products of every
token that it reads (the head only where logits are computed). The draft, attention and everything else are left out, so
nothing can be faster, and what is near its floor can only be made faster by fewer calls or tokens.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atspeed.benchmark.methods import GENERATE
from atspeed.checkpoints.shapes import DTYPES, Shape, check_dtype, check_shape
from genrec.reports.tables import to_markdown
from genrec.runtime.cli import run
from genrec.runtime.errors import UserError
from genrec.runtime.machine import machine_name

if TYPE_CHECKING:
    import torch

HERE = "this machine"


@dataclass(frozen=True)
class Device:
    bandwidth: float  # bytes per second
    rate: dict[str, float]  # floating-point operations per second, by precision (dense)


TENSOR = ("bfloat16", "float16")
DEVICES = {  # the vendor's data sheets
    "A5000": Device(768e9, {"float32": 27.8e12} | dict.fromkeys(TENSOR, 111e12)),
    "A100": Device(2039e9, {"float32": 19.5e12} | dict.fromkeys(TENSOR, 312e12)),  # 80 GB, SXM
    "H200": Device(4800e9, {"float32": 67e12} | dict.fromkeys(TENSOR, 989e12)),  # SXM
}


def main(
    results: str,
    shape: str,
    dtype: str = "float32",
    devices: tuple[str, ...] = (HERE,),
    batch_size: int = 1,
    levels: int = 4,
    vocabulary: int | None = None,
) -> None:
    """vocabulary: of the timed models, where it is not the shape's."""
    chosen, unknown = check_shape(shape), set(devices) - {*DEVICES, HERE}
    check_dtype(dtype)
    if unknown:
        raise UserError(f"--devices {','.join(devices)}: choose from {HERE}, {', '.join(DEVICES)}")
    body, head = weights(chosen, vocabulary)
    if not Path(results).is_file():
        raise UserError(f"--results {results}: no such file; it is written by: bash script/benchmark.sh")

    import pandas as pd

    from atspeed.processes import this_process

    table = pd.read_csv(results)
    shown = table[["method", "K", "target calls", "target tokens", "ms"]].copy()
    known = dict(DEVICES)
    if HERE in devices:
        here = this_process().device
        known[HERE] = reached = measure(dtype, here)
        print(
            f"{HERE}: {reached.rate[dtype] / 1e9:.0f} GFLOP/s, {reached.bandwidth / 1e9:.1f} GB/s ({dtype}, "
            f"{machine_name(here)})\n"
        )
    for name in devices:
        device = known[name]
        shown[f"{name}: floor ms"] = [
            1e3 * floor(row, body, head, device, dtype, batch_size, levels) for row in table.to_dict("records")
        ]
        base = shown[shown["method"] == GENERATE].set_index("K")[f"{name}: floor ms"]
        shown[f"{name}: generate / it"] = base.reindex(shown["K"]).to_numpy() / shown[f"{name}: floor ms"]
    if devices == (HERE,):
        shown["ms / floor"] = shown["ms"] / shown[f"{HERE}: floor ms"]
    else:
        shown = shown.drop(columns="ms")  # of another machine
    print(f"{shape}: {body / 1e6:.0f} M weights in the layers, {head / 1e6:.1f} M in the head, {dtype}\n")
    print(to_markdown(shown))


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


def measure(dtype: str, device: "torch.device") -> Device:
    """What this machine reaches: a large product, and a sum over more than its caches hold."""
    import torch

    from atspeed.benchmark.runner import now

    kind, side = getattr(torch, dtype), 2048 if device.type == "cpu" else 8192
    square = torch.randn(side, side, dtype=kind, device=device)
    long = torch.ones(200_000_000, dtype=kind, device=device)

    def best(work) -> float:
        times = []
        for _ in range(5):
            start = now(device)
            work()
            times.append(now(device) - start)
        return min(times)

    rate = 2 * side**3 / best(lambda: square @ square)
    return Device(long.numel() * kind.itemsize / best(long.sum), {dtype: rate})


if __name__ == "__main__":
    run(main)
