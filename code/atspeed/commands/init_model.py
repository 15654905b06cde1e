r"""Write a model to begin a training from: random weights, or a few layers of a model that there is.

    atspeed init-model --output model/tiny --shape tiny
    atspeed init-model --output model/random --like /path/to/model
    atspeed init-model --output model/small --like /path/to/model --shape tiny --layers 2
    atspeed init-model --output model/draft --like output/toy/target --keep_layers 0,1,3

The first is a random LLaMA with a SentencePiece tokenizer, so that everything runs without a download. Shapes: micro,
tiny, llama-68m, llama-160m, tinyllama-1.1b, llama-7b. --layers changes the depth. With --like, the tokenizer is that
of another model: a draft needs the target's. Without --shape its architecture is, too. --keep_layers keeps weights: a
draft that begins as some of the target's own layers, its embeddings and its head.
"""

from dataclasses import replace
from pathlib import Path

from atspeed.checkpoints.model_files import check_model_path
from atspeed.checkpoints.shapes import check_shape
from genrec.runtime.artefacts import hold
from genrec.runtime.errors import UserError
from genrec.runtime.files import check_new


def main(
    output: str,
    shape: str | None = None,
    layers: int | None = None,
    like: str | None = None,
    keep_layers: tuple[int, ...] | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    chosen, path = check_shape(shape or "tiny"), Path(output)
    if keep_layers is not None and (like is None or shape or layers):
        raise UserError("--keep_layers needs --like, the model whose layers they are, and no --shape or --layers")
    if like:
        check_model_path(like)
    check_new(path, overwrite)
    hold(path)

    from atspeed.checkpoints.base_models import init_from_layers, init_like, init_model

    said, how = f"{shape or 'tiny'}, {layers or chosen.num_hidden_layers} layers", f", random (seed {seed})"
    if like and keep_layers is not None:
        weights = init_from_layers(path, like, keep_layers)
        said, how = f"layers {','.join(map(str, keep_layers))} of {like}", ""
    elif like:
        weights = init_like(path, like, chosen if shape else None, layers, seed)
        said = said if shape else f"as {like}"
    else:
        weights = init_model(path, replace(chosen, num_hidden_layers=layers or chosen.num_hidden_layers), seed)
    print(f"{output}: {said}, {weights / 1e6:.1f} M weights{how}")
