"""Releases of transformers differ in what they call things: the decoder asks the model at hand."""

import inspect
import warnings

import pytest
from transformers import DynamicCache, GenerationConfig, LlamaModel

from beamsd import Trie, beam_search, speculate
from beamsd.compat import CACHE_NAMES, cache_argument
from conftest import assert_same_lists, random_items, random_prompts, tiny_llama


def calls_its_cache(name, cls):
    """A class whose forward takes a cache by `name` alone, as other releases, and models with code of their own, do."""
    native = cache_argument(cls)
    forward = cls.forward

    def renamed(self, *args, **kwargs):
        if name in kwargs:
            kwargs[native] = kwargs.pop(name)
        return forward(self, *args, **kwargs)

    signature = inspect.signature(forward)
    parameters = [p.replace(name=name) if p.name == native else p for p in signature.parameters.values()]
    renamed.__signature__ = signature.replace(parameters=parameters)
    return type(cls.__name__, (cls,), {"forward": renamed})


@pytest.mark.parametrize("name", CACHE_NAMES)
@pytest.mark.parametrize("split", [True, False], ids=["body and head", "whole model"])
def test_a_cache_goes_by_the_name_that_forward_gives_it(name, split, monkeypatch):
    if not split:
        monkeypatch.setattr("beamsd.models.reader.split", lambda model: None)
    items, (ids, mask) = random_items(100), random_prompts(2, 9)
    how = {"trie": Trie(items), "width": 5, "draft": tiny_llama(2, 1), "gamma": 2}
    expected = beam_search(tiny_llama(1, 2), ids, mask, **how)
    target = tiny_llama(1, 2)
    target.__class__ = calls_its_cache(name, type(target))
    target.model.__class__ = calls_its_cache(name, LlamaModel)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_lists(beam_search(target, ids, mask, **how), expected)


def test_a_cache_by_a_name_of_tomorrow_is_refused_as_that():
    """5.24.0 renamed `past_key_values`, and every model was said to keep a state in place of keys and values."""
    target, (ids, mask) = tiny_llama(1, 2), random_prompts(2, 9)
    target.__class__ = calls_its_cache("memory", type(target))
    with pytest.raises(ValueError, match=r"LlamaForCausalLM.forward takes no cache .*transformers \d.*pip install"):
        beam_search(target, ids, mask, trie=Trie(random_items(100)), width=5)


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_a_cache_of_ones_own_is_refused_by_whatever_name(name):
    target, (ids, mask) = tiny_llama(1, 2), random_prompts(2, 9)
    decode, cache = speculate(None, trie=Trie(random_items(100))), DynamicCache(config=target.config)
    native = cache_argument(target.model)
    target.model(input_ids=ids[:, :4], use_cache=True, **{native: cache})
    with pytest.raises(ValueError, match="pass no cache"):
        decode(target, ids, [], [], GenerationConfig(num_beams=1, max_length=13), attention_mask=mask, **{name: cache})
    with pytest.raises(ValueError, match="pass no cache"):
        target.generate(ids, attention_mask=mask, max_new_tokens=4, custom_generate=decode, **{native: cache})
