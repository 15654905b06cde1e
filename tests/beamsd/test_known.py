"""What is found out about a model follows the model, and finding it out disturbs nobody."""

import sys
from functools import wraps
from threading import Barrier, Thread

import pytest
import torch
from torch import nn

from beamsd import Trie, speculate
from conftest import VOCABULARY, noisy_copy, random_items, random_prompts, tiny_llama, tiny_model

REQUEST = {"num_beams": 5, "max_new_tokens": 4, "num_return_sequences": 5, "do_sample": False, "eos_token_id": None}
REQUEST |= {"return_dict_in_generate": True, "output_scores": True}


def answer(model, decode=None, seed=0, **request):
    ids, mask = random_prompts(2, 9, seed)
    how = {"custom_generate": decode} if decode else {}
    return model.generate(input_ids=ids, attention_mask=mask, **REQUEST, **request, **how)


def assert_equal(output, expected):
    assert torch.equal(output.sequences, expected.sequences)
    torch.testing.assert_close(output.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=1e-5)


def other_head(model):
    model.set_output_embeddings(nn.Linear(32, VOCABULARY, bias=False))


def other_weights_of_the_head(model):
    model.lm_head.weight = nn.Parameter(torch.randn(VOCABULARY, 32))


CHANGES = {
    "another head": other_head,
    "other weights of the head": other_weights_of_the_head,
    "more embeddings": lambda model: model.resize_token_embeddings(128),
    "other input embeddings": lambda model: model.set_input_embeddings(nn.Embedding(VOCABULARY, 32)),
    "float64": lambda model: model.double(),
    "eager": lambda model: model.set_attn_implementation("eager"),
}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_was_changed_after_its_first_request_is_decoded_as_it_is(change, architecture):
    """As long as head and body were kept from first sight, another head gave the lists of the old one."""
    model = tiny_model(architecture)
    answer(model, decode := speculate(None, drafter="none"))
    CHANGES[change](model)
    assert_equal(answer(model, decode), answer(model))


def test_other_threads_see_nothing_of_the_first_look_at_a_model():
    """Their own forwards of the same model are what they always are, whatever is being tried out."""
    model, ids = tiny_llama(1, 2), torch.tensor([[5, 6, 7]])
    expected, seen, forward = model(ids).logits, [], model.model.forward

    @wraps(forward)
    def interrupted(*args, **kwargs):
        model.model.forward = forward
        other = Thread(target=lambda: seen.append(model(ids).logits))
        other.start()
        other.join()
        model.model.forward = interrupted
        return forward(*args, **kwargs)

    model.model.forward = interrupted
    answer(model, speculate(None, drafter="none"))
    assert len(seen) > 5
    assert all(torch.equal(each, expected) for each in seen)


def test_threads_that_meet_a_new_model_together_all_get_its_lists():
    """Here "does not follow the attention mask" was said of models that do."""
    interval, failures, trie = sys.getswitchinterval(), [], Trie(random_items(200))
    sys.setswitchinterval(1e-5)
    try:
        for seed in range(4):
            model = tiny_llama(seed, 2)
            expected = answer(tiny_llama(seed, 2), speculate(None, trie=trie, drafter="none"))
            decode, together = speculate(noisy_copy(model, 0.1), trie=trie), Barrier(4)

            def ask(model=model, decode=decode, together=together, expected=expected):
                together.wait()
                try:
                    assert_equal(answer(model, decode), expected)
                except Exception as error:  # a thread would swallow it
                    failures.append(error)

            threads = [Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures
