"""One tree forward equals one forward a sequence."""

import torch

from atspeed.forward import tree_logits
from conftest import LENGTH, random_items, random_prompts, tiny_llama


def test_one_forward_equals_one_a_sequence():
    items, (ids, mask) = random_items(100), random_prompts(3, 9)
    model = tiny_llama(1, 2)
    beams = items[torch.randint(len(items), (3, 6), generator=torch.Generator().manual_seed(1))]
    item = torch.cat([beams[:, 2], torch.full((3, 1), 2)], -1)  # also one of the beams, and EOS
    with torch.no_grad():
        tree = tree_logits(model, ids, mask, item, beams)
        alone = tree_logits(model, ids, mask, item)
        for b in range(3):
            prompt = ids[b][mask[b].bool()]
            expected = model(torch.cat([prompt, item[b]])[None]).logits[0, -LENGTH - 2 : -1]
            torch.testing.assert_close(tree.for_item()[b], expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(alone.for_item()[b], expected, atol=1e-4, rtol=1e-4)
            for k in range(6):
                expected = model(torch.cat([prompt, beams[b, k]])[None]).logits[0, -LENGTH - 1 : -1]
                torch.testing.assert_close(tree.for_beams()[b, k], expected, atol=1e-4, rtol=1e-4)
