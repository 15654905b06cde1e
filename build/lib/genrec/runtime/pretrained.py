"""Loading of Hugging Face models, with checks that their weights are complete, finite and of the configured shapes.

transformers initialises a weight that a checkpoint lacks at random and reports it only in its log.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from genrec.runtime.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

AGAIN = "fetch or write it again"


def load_pretrained(
    auto: type, path: str, unused: tuple[str, ...] = (), device: torch.device | str = "cpu", **settings: object
) -> PreTrainedModel:
    """Loads `auto.from_pretrained(path, **settings)` in eval mode, where `auto` is one of the AutoModel classes.

    unused: prefixes of weights that may be missing because they are not used. device: where the weights go one by one
    as they are read, so that the host never holds them all.
    Raises UserError if the weights cannot be read, or if one is missing, differs in shape from config.json, or holds
    NaN or infinity; the message names it.
    """
    try:
        model, found = auto.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, device_map={"": device}, **settings
        )
    except (SafetensorError, UnpicklingError, EOFError) as error:
        raise UserError(f"{path}: its weights are damaged or truncated ({error}); {AGAIN}") from error
    if (
        "quantization_config" not in settings
    ):  # by its map the Trainer would take "cuda", not "cuda:0", for several GPUs
        vars(model).pop("hf_device_map", None)
    if missing := sorted(name for name in found["missing_keys"] if not name.startswith(unused)):
        raise UserError(f"{path}: its weights lack {_first(missing)}, which would be random; {AGAIN}")
    if other := sorted(found["mismatched_keys"]):
        _, stored, wanted = other[0]
        raise UserError(
            f"{path}: its weights are not those of its config.json: {_first([each[0] for each in other])} (stored "
            f"{tuple(stored)}, where {tuple(wanted)} is configured); {AGAIN}"
        )
    check_finite(model.named_parameters(), path)
    return model.eval()


def _first(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def check_finite(weights: Iterable[tuple[str, Tensor]], path: str | Path) -> None:
    """Raises UserError if one of a model's weights, which were read from `path`, holds NaN or infinity.

    This takes 1/7 s per GB, where a hash would take 1 s, but does not detect damage that leaves finite numbers.
    """
    for name, weight in weights:
        # Both bounds are NaN if any value is NaN.
        if weight.is_floating_point() and weight.numel() and not all(bound.isfinite() for bound in weight.aminmax()):
            raise UserError(f"{path}: its weights {name} are not all numbers: the file is damaged, or its training "
                            f"diverged; {AGAIN}")  # fmt: skip
