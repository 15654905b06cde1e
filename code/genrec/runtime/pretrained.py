"""Loading of Hugging Face models whose weights must be complete, of the configured shapes, and finite.

A weight that a checkpoint lacks is made at random by transformers, and only its log says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from genrec.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

AGAIN = "fetch or write it again"


def load_pretrained(auto: type, path: str, unused: tuple[str, ...] = (), **settings: object) -> PreTrainedModel:
    """`auto.from_pretrained(path, **settings)`, in eval mode, where `auto` is one of the AutoModel classes.

    unused: what weights begin with that may be missing, as nothing is read from them.
    Raises UserError if the weights cannot be read, and names one that is missing, of another shape than config.json
    says, or not all numbers.
    """
    try:
        model, found = auto.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **settings)
    except (SafetensorError, UnpicklingError, EOFError) as error:
        raise UserError(f"{path}: its weights are damaged or truncated ({error}); {AGAIN}") from error
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

    It takes a seventh of a second a GB, where a hash would take one; a damage that leaves numbers is not seen.
    """
    for name, weight in weights:
        # Both bounds are NaN if any value is.
        if weight.is_floating_point() and weight.numel() and not all(bound.isfinite() for bound in weight.aminmax()):
            raise UserError(f"{path}: its weights {name} are not all numbers: the file is damaged, or its training "
                            f"diverged; {AGAIN}")  # fmt: skip
