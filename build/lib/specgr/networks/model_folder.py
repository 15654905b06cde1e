"""A model as a folder: its settings as JSON, its weights as safetensors."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path, write_json
from genrec.runtime.pretrained import check_finite
from genrec.runtime.text import read_json

WEIGHTS = "model.safetensors"
Model = TypeVar("Model", bound=nn.Module)


def save_weights(model: nn.Module, folder: Path, name: str) -> None:
    """Write `model.settings`, a dataclass, as `name`, and the weights; whole or not at all."""
    with atomic_path(folder) as partial:
        partial.mkdir()
        write_json(partial / name, asdict(model.settings))
        save_model(model, str(partial / WEIGHTS))


def load_weights(make: Callable[[dict], Model], folder: Path, name: str, what: str) -> Model:
    """Read what `save_weights` wrote, on the CPU, ready to evaluate. make: a model of the settings.

    Raises UserError if it is missing or damaged; it calls the model `what`.
    """
    settings = read_json(folder / name)
    try:
        model = make(settings)
        load_model(model, folder / WEIGHTS)
    except (TypeError, ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: not a {what} that this version wrote ({error}); train it again") from error
    check_finite(model.named_parameters(), folder)
    return model.eval()
