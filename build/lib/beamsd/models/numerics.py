"""What precision a model really computes in, and how far apart two correct results may then lie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Largest difference between logits by two kernels, relative to the largest logit. Two kernels of one GPU, such as
# attention with and without a mask, need not agree to the bit; models in float64 compute norms in float32.
TOLERANCES = {"float64": 1e-3, "float32": 1e-3, "tf32": 2e-2, "float16": 5e-2, "bfloat16": 0.1}


class PrecisionWatch(TorchFunctionMode):
    """Collects the precisions, keys of `TOLERANCES`, that a model's forwards inside this context compute in.

    The dtype of the weights does not tell: autocast may surround a forward or be part of it, as accelerate wraps models
    for mixed precision, and float32 products may be computed in TF32. It sees this thread alone, and changes nothing.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model, self.seen = model, {precision_of(model)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is linear:
            self.seen.add(precision_of(self.model))
        return func(*args, **(kwargs or {}))


def precision_of(model: PreTrainedModel) -> str:
    """The precision, a key of `TOLERANCES`, that the model computes in where this is called."""
    kind, dtype = model.device.type, model.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    name = str(dtype).removeprefix("torch.")
    if name == "float32" and kind == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return name if name in TOLERANCES else "bfloat16"  # 8-bit floats and integers compute in something as coarse


def is_close(a: Tensor, b: Tensor, precisions: set[str]) -> bool:
    """Whether two tensors agree within the coarsest of the precisions."""
    tolerance = max(TOLERANCES[name] for name in precisions)
    return bool(((a - b).abs().amax() <= tolerance * b.abs().amax()).item())


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32 inside the context: float32 products are computed in float32. The setting is the whole process's."""
    # Not by torch.get_float32_matmul_precision, which fails where the user has set what is set here.
    products = torch.backends.cuda.matmul
    before, products.fp32_precision = products.fp32_precision, "ieee"
    try:
        yield
    finally:
        products.fp32_precision = before
