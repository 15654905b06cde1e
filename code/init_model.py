"""Write a randomly initialised LLaMA with a SentencePiece tokenizer, so that everything runs without a download.

    python code/init_model.py --output model/tiny --shape tiny

Shapes: tiny, llama-68m, llama-160m, tinyllama-1.1b, llama-7b. --layers changes the depth.
"""

from dataclasses import replace
from pathlib import Path

from atspeed.models import SHAPES, init_model
from genrec.cli import run
from genrec.errors import UserError


def main(output: str, shape: str = "tiny", layers: int | None = None, seed: int = 0, overwrite: bool = False) -> None:
    if shape not in SHAPES:
        raise UserError(f"--shape {shape}: choose from {', '.join(SHAPES)}")
    if layers is not None and layers < 1:
        raise UserError(f"--layers {layers}: a model has at least 1")
    if Path(output).exists() and not overwrite:
        raise UserError(f"{output}: is there already; choose another --output, or pass --overwrite")
    chosen = replace(SHAPES[shape], num_hidden_layers=layers) if layers else SHAPES[shape]
    weights = init_model(Path(output), chosen, seed)
    print(f"{output}: {shape}, {chosen.num_hidden_layers} layers, {weights / 1e6:.1f} M weights, random (seed {seed})")


if __name__ == "__main__":
    run(main)
