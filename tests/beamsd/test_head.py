"""The head of a model apart from its body: only where the logits are nothing else."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from beamsd import Trie, beam_search
from beamsd.models.parts import split
from conftest import ARCHITECTURES, COMMON, random_items, random_prompts

GROUPED = COMMON | {"num_key_value_heads": 2}
CASES = {name: (config, True) for name, config in ARCHITECTURES.items()} | {
    # A cap that hardly shows in small logits, and scales.
    "gemma2": (GROUPED | {"head_dim": 8, "final_logit_softcapping": 30.0, "sliding_window": 64}, False),
    "cohere": (GROUPED | {"logit_scale": 0.5}, False),
    "granite": (GROUPED | {"logits_scaling": 4.0}, False),
}


@pytest.mark.parametrize("architecture", CASES)
@torch.inference_mode()
def test_the_words_after_any_node_are_the_models_own(architecture):
    config, apart = CASES[architecture]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **config)).eval()
    assert (split(model) is not None) == apart
    ids, mask = random_prompts(1, 6)
    trie = Trie(random_items(50))
    result = beam_search(model, ids, mask, trie=trie, width=7)
    sequences = torch.cat([ids.expand(7, -1), result.sequences[0]], 1)
    log_probs = model(sequences).logits.log_softmax(-1)[:, 5:-1].gather(2, result.sequences[0][..., None])
    torch.testing.assert_close(log_probs.sum((1, 2)), result.scores[0], atol=1e-4, rtol=1e-5)
