"""What is found out about a model follows the model, and finding it out disturbs nobody."""

import sys
from copy import deepcopy
from functools import wraps
from threading import Barrier, Thread

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from beamsd import Prefix, Program, Trie, beam_search, speculate
from conftest import (
    PROGRAMS,
    VOCABULARY,
    assert_same_lists,
    noisy_copy,
    random_items,
    random_prompts,
    tiny_llama,
    tiny_model,
)

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


def adapter(model, **options):
    config = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, **options)
    torch.manual_seed(1)
    return get_peft_model(model, config)


def trained(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.tensor([[5, 6, 7]])).logits[..., 8].sum().backward()
    optimizer.step()
    return model


def loaded(model):
    model.load_state_dict(noisy_copy(model, 1).state_dict())
    return model


def off(model):
    model.base_model.disable_adapter_layers()
    return model


def merged(model):
    model.merge_adapter()
    return model


def scaled(model):
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_scale("default", 5)
    return model


def other_adapter(model):
    torch.manual_seed(2)
    model.add_adapter("other", LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model.set_adapter("other")
    return model


REVISIONS = {
    "trained": (False, trained),
    "loaded": (False, loaded),
    "float64": (False, lambda model: model.double()),
    "an adapter": (False, adapter),
    "an adapter, merged": (False, lambda model: adapter(model).merge_and_unload()),
    "adapter off": (True, off),
    "adapter merged": (True, merged),
    "adapter merged for good": (True, lambda model: model.merge_and_unload()),
    "adapter with another scale": (True, scaled),
    "another adapter": (True, other_adapter),
}
PREFIX = [5, 6, 7, 8, 9]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing", "ignore:.*PeftConfig")
@pytest.mark.parametrize("kept", ["prefix", "recorded", "static", "prefix, static"])
@pytest.mark.parametrize("revision", REVISIONS)
def test_what_is_kept_of_a_model_goes_when_its_weights_or_adapters_change(revision, kept):
    """The keys and values of a prefix, and what was captured, were those of the weights that they were made with."""
    is_adapted, change = REVISIONS[revision]
    model = adapter(tiny_llama(1, 2)) if is_adapted else tiny_llama(1, 2)
    options = {"prefix": Prefix(PREFIX) if "prefix" in kept else None, "trie": Trie(random_items(200)), "width": 5}
    options["program"] = PROGRAMS[kept.split(", ")[-1]]() if kept != "prefix" else None
    ids = torch.tensor([[*PREFIX, 11, 12]])
    before = beam_search(model, ids, **options)
    model = change(model)
    after = beam_search(model, ids, **options)
    plain = beam_search(model, ids, **options | {"prefix": None, "program": None})
    assert_same_lists(after, plain)
    same = revision in ("float64", "adapter merged", "adapter merged for good")
    assert torch.allclose(before.scores, after.scores, atol=1e-3) == same


def test_weights_whose_changes_leave_no_trace_are_refused_where_something_is_kept():
    with torch.inference_mode():
        model = deepcopy(tiny_llama(1, 1))
    options = {"width": 2, "max_new_tokens": 3}
    ids = torch.tensor([[*PREFIX, 11, 12]])
    beam_search(model, ids, **options)
    for kept in {"prefix": Prefix(PREFIX)}, {"program": PROGRAMS["static"]()}:
        with pytest.raises(ValueError, match=r"LlamaForCausalLM has weights that were made under torch.inference_mode"):
            beam_search(model, ids, **options, **kept)


def test_threads_that_share_a_program_take_turns():
    model, trie, program = tiny_llama(1, 2), Trie(random_items(200)), PROGRAMS["static"]()
    prompts = [random_prompts(1, 9, seed) for seed in range(4)]
    expected, failures = [beam_search(model, *each, trie=trie, width=5) for each in prompts], []

    def ask(at):
        try:
            for _ in range(5):
                assert_same_lists(beam_search(model, *prompts[at], trie=trie, width=5, program=program), expected[at])
        except Exception as error:  # a thread would swallow it
            failures.append(error)

    threads = [Thread(target=ask, args=[at]) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_compiled_models_follow_their_weights():
    """They are compiled with frozen weights, which torch keeps beyond the program."""
    model, trie, ids = tiny_llama(1, 2), Trie(random_items(200)), torch.tensor([[5, 6, 7]])
    program = Program()
    for _ in range(2):
        assert_same_lists(
            beam_search(model, ids, trie=trie, width=3, program=program), beam_search(model, ids, trie=trie, width=3)
        )
        trained(model)
    assert_same_lists(
        beam_search(model, ids, trie=trie, width=3, program=Program()), beam_search(model, ids, trie=trie, width=3)
    )
