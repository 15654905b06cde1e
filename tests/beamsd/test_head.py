"""The head of a model apart from its body: only where the logits are nothing else."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from beamsd import Trie, beam_search
from beamsd.models.parts import apply_head, split
from conftest import ARCHITECTURES, COMMON, LENGTH, noisy_copy, random_items, random_prompts, tiny_llama

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


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.2])
@pytest.mark.parametrize("width", [1, 12])
def test_on_a_cpu_the_head_is_called_for_no_level_beyond_the_last_accepted(noise, width):
    target = tiny_llama(1, 2)
    draft = noisy_copy(target, noise, seed=3)
    calls = []
    target.lm_head.register_forward_hook(lambda head, states, logits: calls.append(logits.shape[1]))
    (ids, mask), trie = random_prompts(1, 6), Trie(random_items(200))
    beam_search(target, ids, mask, trie=trie, width=width)  # looked at as any model once
    calls.clear()
    result = beam_search(target, ids, mask, trie=trie, width=width, draft=draft, gamma=3, draft_width=2 * width)
    (accepted,) = result.accepted.tolist()
    assert len(calls) == sum(each + 1 for each in accepted) == LENGTH


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (4, 4), (0, 4), (1, 17)])
@torch.inference_mode()
def test_a_head_of_few_rows_is_computed_the_other_way_round(shape, bias, monkeypatch):
    head, states = torch.nn.Linear(8, 30, bias=bias), torch.randn(*shape, 8)
    expected, called = head(states), []
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *given: called.append(given) or expected)
    logits = apply_head(head, states)
    torch.testing.assert_close(logits, expected)
    assert logits.is_contiguous()
    assert bool(called) == (shape in ((0, 4), (1, 17))), "none, or more than a few"


class Other(torch.nn.Linear):
    def forward(self, states):
        return super().forward(states) + 1


@pytest.mark.parametrize("kind", ["a class of its own", "hook", "pre-hook", "forward", "dtype"])
@torch.inference_mode()
def test_a_head_that_is_more_than_weights_is_called(kind):
    head, states = (Other if kind == "a class of its own" else torch.nn.Linear)(8, 30), torch.randn(1, 3, 8)
    if kind == "hook":
        head.register_forward_hook(lambda head, given, logits: logits + 1)
    elif kind == "pre-hook":
        head.register_forward_pre_hook(lambda head, given: (given[0] + 1,))
    elif kind == "forward":
        head.forward = lambda states: torch.nn.Linear.forward(head, states) + 1
    elif kind == "dtype":
        head, states = head.double(), states.double()
    assert torch.equal(apply_head(head, states), head(states))
