"""Write a randomly initialised LLaMA with a SentencePiece tokenizer, so that everything runs without a download.

    atspeed init-model --output model/tiny --shape tiny

Shapes: micro, tiny, llama-68m, llama-160m, tinyllama-1.1b, llama-7b. --layers changes the depth.
"""

from dataclasses import replace
from pathlib import Path

from atspeed.checkpoints.shapes import check_shape
from genrec.runtime.artefacts import hold
from genrec.runtime.files import check_new


def main(output: str, shape: str = "tiny", layers: int | None = None, seed: int = 0, overwrite: bool = False) -> None:
    chosen = check_shape(shape)
    check_new(Path(output), overwrite)
    hold(Path(output))
    if layers:
        chosen = replace(chosen, num_hidden_layers=layers)

    from atspeed.checkpoints.loading import init_model

    weights = init_model(Path(output), chosen, seed)
    print(f"{output}: {shape}, {chosen.num_hidden_layers} layers, {weights / 1e6:.1f} M weights, random (seed {seed})")
