"""What the tests share: tiny random models and catalogues. No weights, no network, no GPU."""

from copy import deepcopy

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY, LENGTH = 40, 4


def tiny_llama(seed: int, layers: int, hidden: int = 32, vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    """A random LLaMA with grouped-query attention and logits far enough apart to make ties rare."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3, max_position_embeddings=256,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def noisy_copy(model: LlamaForCausalLM, noise: float, seed: int = 0) -> LlamaForCausalLM:
    """A drafter that agrees with `model` more or less often."""
    torch.manual_seed(seed)
    copy = deepcopy(model)
    with torch.no_grad():
        for weight in copy.parameters():
            weight += noise * weight.std() * torch.randn_like(weight)
    return copy


def random_items(n_items: int, seed: int = 0, codes: int = 8) -> torch.Tensor:
    """Distinct items (n, LENGTH): at every level one of `codes` tokens of its own."""
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randint(codes * d + 4, codes * (d + 1) + 4, (n_items,), generator=generator) for d in range(LENGTH)]
    return torch.stack(levels, -1).unique(dim=0)


def random_prompts(batch: int, length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded prompts and their mask (batch, length), each row shorter than the one before."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(batch):
        mask[row, : min(2 * row, length - 1)] = 0
    return ids * mask, mask
