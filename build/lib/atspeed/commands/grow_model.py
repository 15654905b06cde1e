r"""Enlarge a trained LLaMA checkpoint without changing its function: time a 7B that behaves like the small model.

    atspeed grow-model --model output/toy/target --output output/toy/target-7b --shape llama-7b \
        --dtype bfloat16

--model is what stage 1 or stage 3 wrote; the output can stand in its place, and has a fingerprint of its own. --shape
is one of `init_model`, no smaller in any dimension; the vocabulary stays the checkpoint's (32,000 tokens would be
another 4 % of a 7B's weights). In float32 the logits are the same but for rounding; in bfloat16 near-ties may swap.
--seed is for the weights that do not matter.
"""

from pathlib import Path

from atspeed.checkpoints.shapes import check_dtype, check_shape
from genrec.runtime.artefacts import hold, make_facts, read_facts
from genrec.runtime.errors import UserError
from genrec.runtime.files import check_new

STAGE = "grow_model"


def main(model: str, output: str, shape: str, dtype: str = "float32", seed: int = 0, overwrite: bool = False) -> None:
    arguments = {k: v for k, v in locals().items() if k not in ("output", "overwrite")}
    chosen, weights, path = check_shape(shape), check_dtype(dtype), Path(output)
    read_facts(Path(model), ("finetune_llama", "train"), "finetune_llama")
    if path.resolve() == Path(model).resolve():
        raise UserError(f"--output {output}: is --model itself; choose another")
    check_new(path, overwrite)
    hold(path)

    import torch

    from atspeed.benchmark.growth import plan_growth, save_grown

    growth = plan_growth(model, chosen)
    count = save_grown(path, growth, getattr(torch, weights), seed, make_facts(STAGE, arguments, **growth.describe()))
    print(f"{output}: {model} as {shape}, {count / 1e6:.1f} M weights in {dtype}, the same function")
