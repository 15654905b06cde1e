"""One tree forward equals one forward a sequence."""

import pytest
import torch

from atspeed.checkpoints.lora import add_lora
from atspeed.tree_logits import tree_logits
from beamsd.compat import CHECKPOINTING_NAMES, known_name
from conftest import LENGTH, VOCABULARY, random_items, random_prompts, tiny_llama


def eager(model):
    model.set_attn_implementation("eager")
    return model


def checkpointed(model):
    getattr(model, known_name([f"{name}_enable" for name in CHECKPOINTING_NAMES], dir(model)))()
    return model.train()


KINDS = {
    "sdpa": lambda model: model,
    "eager": eager,
    "gradient checkpointing": checkpointed,
    "LoRA": lambda model: add_lora(model, [10, 11], 4, 8, 0.0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_forward_equals_one_a_sequence(kind):
    items, (ids, mask) = random_items(100), random_prompts(3, 9)
    plain, model = tiny_llama(1, 2), KINDS[kind](tiny_llama(1, 2))
    beams = items[torch.randint(len(items), (3, 6), generator=torch.Generator().manual_seed(1))]
    item = torch.cat([beams[:, 2], torch.full((3, 1), 2)], -1)  # also one of the beams, and EOS
    tree = tree_logits(model, ids, mask, item, beams)
    alone = tree_logits(model, ids, mask, item)
    tokens = torch.randint(VOCABULARY, (3, 6, LENGTH, 5), generator=torch.Generator().manual_seed(2))
    log_probs = tree.log_probs(tokens)
    log_probs.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)
    assert any(weight.grad.abs().max() > 0 for weight in model.parameters() if weight.grad is not None)
    with torch.no_grad():
        for b in range(3):
            prompt = ids[b][mask[b].bool()]
            expected = plain(torch.cat([prompt, item[b]])[None]).logits[0, -LENGTH - 2 : -1]
            torch.testing.assert_close(tree.for_item()[b], expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(alone.for_item()[b], expected, atol=1e-4, rtol=1e-4)
            for k in range(6):
                expected = plain(torch.cat([prompt, beams[b, k]])[None]).logits[0, -LENGTH - 1 : -1]
                torch.testing.assert_close(tree.for_beams()[b, k], expected, atol=1e-4, rtol=1e-4)
                said = expected.log_softmax(-1).gather(-1, tokens[b, k])
                torch.testing.assert_close(log_probs[b, k], said, atol=1e-4, rtol=1e-4)
