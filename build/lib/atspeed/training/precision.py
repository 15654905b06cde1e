"""Mixed precision, and base models in 8 or 4 bits."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

from genrec.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

PRECISIONS = ("no", "bf16", "fp16")


def check_precision(precision: str | None) -> None:
    """Raises UserError for a mixed precision that does not exist."""
    if precision not in (None, *PRECISIONS):
        raise UserError(f"--mixed_precision {precision}: choose from {', '.join(PRECISIONS)}")


def check_mixed_precision(precision: str | None, weights: str, frozen: bool = False) -> str:
    """What matrix products of a training are computed in: bf16, fp16, or "no" for the dtype of the weights.

    precision: None for bf16 on a GPU that has it, else "no". weights: their dtype's name. frozen: whether they stay as
    they are (LoRA).
    Raises UserError for what this machine, or training, cannot do.
    """
    check_precision(precision)
    import torch

    gpu = torch.cuda.is_available()
    bf16 = not gpu or torch.cuda.is_bf16_supported(including_emulation=False)
    chosen = precision or ("bf16" if gpu and bf16 else "no")
    if chosen == "fp16" and not gpu:
        raise UserError("--mixed_precision fp16 needs a GPU, and there is none; choose bf16 or no")
    if chosen == "bf16" and not bf16:
        raise UserError("--mixed_precision bf16: this GPU has none; choose fp16 or no")
    if weights == "float16" and not (frozen and chosen != "no"):
        raise UserError(
            f"--dtype float16 with --mixed_precision {chosen} cannot be trained: small gradients and Adam's epsilon "
            "are 0 in float16; pass --dtype float32 (or bfloat16) and, for speed, --mixed_precision fp16 (or bf16)"
        )
    return chosen


def check_quantised(load_in_8bit: bool, load_in_4bit: bool, full: bool, dtype: str) -> BitsAndBytesConfig | None:
    """How the base model is quantised while LoRA trains on it; None for not at all.

    Raises UserError if it cannot be: without bitsandbytes or a GPU, for all weights, or in shards.
    """
    if not (load_in_8bit or load_in_4bit):
        return None
    flag = "--load_in_8bit" if load_in_8bit else "--load_in_4bit"
    if load_in_8bit and load_in_4bit:
        raise UserError("--load_in_8bit and --load_in_4bit exclude one another; pass one")
    if full:
        raise UserError(f"{flag} does not go with --full: quantised weights are not trained; leave one of the two out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{flag} needs bitsandbytes, which is not installed; pip install bitsandbytes")
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"{flag} needs a GPU, and there is none; leave it out")
    if {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"} & set(os.environ):
        raise UserError(f"{flag} does not go with FSDP or DeepSpeed; set ACCELERATE_CONFIG=accelerate.yaml")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_8bit=load_in_8bit, load_in_4bit=load_in_4bit, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )  # fmt: skip
