"""A server's memory: requests of all shapes leave nothing behind."""

import gc
import random

import psutil
import pytest
import torch

from beamsd import Prefix, Trie, speculate
from conftest import noisy_copy, random_items, tiny_llama

REQUESTS, WARM = 2000, 1000


@pytest.mark.slow
@pytest.mark.parametrize("drafter", ["auto", "hybrid", "none"])
def test_memory_is_flat_over_2000_requests(drafter):
    target, rng = tiny_llama(1, 2), random.Random(0)
    draft = noisy_copy(target, 0.05) if drafter != "none" else None
    items = random_items(200)
    decode = speculate(draft, trie=Trie(items), drafter=drafter, prefix=Prefix([5, 6, 7]))
    generator, process, used = torch.Generator().manual_seed(0), psutil.Process(), []
    for request in range(REQUESTS):
        B, P = rng.randint(1, 4), rng.randint(1, 12)
        ids = torch.cat([torch.tensor([[5, 6, 7]] * B), torch.randint(3, 40, (B, P), generator=generator)], 1)
        target.generate(
            ids, attention_mask=torch.ones_like(ids), num_beams=rng.choice([1, 3, 8]), do_sample=False,
            max_new_tokens=items.shape[1], eos_token_id=None, pad_token_id=0, custom_generate=decode,
        )  # fmt: skip
        if request >= WARM and request % 100 == 0:
            gc.collect()
            used.append(process.memory_info().rss / 2**20)
    assert max(used) - used[0] < 20, f"MiB of memory: {used}"
