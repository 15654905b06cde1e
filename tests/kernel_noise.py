"""Attention as two GPU kernels compute it: with a mask and without one, results differ within rounding.

On a GPU a call without a mask takes flash attention, one with a mask another kernel, and they round in other places; on
a CPU the two agree nearly to the bit, so that tests would not notice a check that asks for that. Here the one with a
mask rounds scores and probabilities, the one without only its result. In 16 bits that is the rounding of the tensors'
dtype; products of float32 are rounded to TF32, wherever they would be on a GPU: while
torch.get_float32_matmul_precision() is not "highest".
"""

import torch
from torch import Tensor
from torch.nn import functional

linear = functional.linear


def rounded(x: Tensor) -> Tensor:
    """To the precision that products are computed in, float32 in any case."""
    if x.dtype != torch.float32:
        return x.float()
    if torch.get_float32_matmul_precision() == "highest":
        return x
    mantissa, exponent = x.frexp()
    return (mantissa * 2**11).round().ldexp(exponent - 11)  # TF32 has 10 bits after the leading one


def noisy_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
        return linear(x, weight, bias)
    return linear(rounded(x), rounded(weight), bias)


def noisy_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """In the place of torch.nn.functional.scaled_dot_product_attention."""
    assert not dropout_p
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        inputs = [x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value)]
        with torch.autocast(kind, enabled=False):
            return noisy_attention(*inputs, attn_mask, 0.0, is_causal, scale, enable_gqa)
    dtype, scale = query.dtype, scale or query.shape[-1] ** -0.5
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    scores = rounded(query) @ rounded(key).transpose(-1, -2) * scale
    if is_causal:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~causal, -torch.inf)
    if attn_mask is None:
        return (rounded(scores.softmax(-1)) @ rounded(value)).to(dtype)
    # Padding attends to nothing, which must not make a NaN.
    mask = attn_mask if attn_mask.is_floating_point() else torch.zeros_like(scores).masked_fill_(~attn_mask, -1e9)
    scores = rounded(scores.to(dtype)) + mask
    return (rounded(scores.softmax(-1).to(dtype)) @ rounded(value)).to(dtype)
