r"""Set each measured time beside its floor, and predict other devices, from the calls and tokens that were counted.

    atspeed roofline --results docs/results/benchmark/batch-1-float32.csv --shape llama-160m \
        --dtype float32
    atspeed roofline --results docs/results/benchmark/batch-1-float32.csv --shape llama-7b \
        --dtype bfloat16 --devices A5000,A100,H200

The floor of a request is the larger of two times: reading the target's weights once a call, and the products of every
token that it reads (the head only where logits are computed). The draft, attention and everything else are left out, so
nothing can be faster, and what is near its floor can only be made faster by fewer calls or tokens.
"""

from pathlib import Path

from atspeed.benchmark.floors import DEVICES, floor, measure, weights
from atspeed.benchmark.methods import GENERATE
from atspeed.checkpoints.shapes import check_dtype, check_shape
from genrec.reports.tables import csv_name, to_markdown
from genrec.runtime.errors import UserError
from genrec.runtime.machine import machine_name

HERE = "this machine"


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

    names = {csv_name(name): name for name in ("target calls", "target tokens")}
    table = pd.read_csv(results).rename(columns=names)
    shown = table[["method", "K", *names.values(), "ms"]].copy()
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
