"""The check of models does not take the rounding of a GPU's kernels for a model that reads no token trees."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM

from beamsd.models.support import check_model
from conftest import tiny_llama
from fake_cuda import move
from kernel_noise import noisy_attention


def larger_llama(layers, hidden, heads, spread):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, initializer_range=spread, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


SHAPES = {
    "tiny": partial(tiny_llama, 1, 2),
    "wide": partial(larger_llama, 2, 768, 12, 0.02),
    "deep": partial(larger_llama, 8, 128, 4, 0.1),
}


def autocast(model):
    """As Selection gets it from the Trainer: float32 weights, and accelerate's autocast around `forward`."""
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    return accelerator.unwrap_model(accelerator.prepare_model(model, evaluation_mode=True))


def in_precision(model, precision):
    """The model in `precision`: float32 that a GPU computes in TF32; under autocast, and in bfloat16 itself."""
    return [move(model)] if precision == "tf32" else [autocast(deepcopy(model)), model.bfloat16()]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_that_reads_trees_is_taken(device, kernel_noise, shape):
    for model in in_precision(SHAPES[shape](), kernel_noise):
        check_model(model)


def test_one_that_ignores_the_mask_is_refused(device, kernel_noise, monkeypatch):
    def unmasked(query, key, value, attn_mask=None, **kwargs):
        return noisy_attention(query, key, value, attn_mask if attn_mask is None else attn_mask * 0, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", unmasked)
    for model in in_precision(tiny_llama(1, 2), kernel_noise):
        with pytest.raises(ValueError, match="does not follow the attention mask"):
            check_model(model)
