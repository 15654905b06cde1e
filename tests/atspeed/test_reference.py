"""The reference of every check: transformers' beam search under the catalogue, whatever else a checkpoint asks for."""

import pytest
import torch
from transformers import GenerationConfig

from atspeed.benchmark.methods import GENERATE, make_methods
from conftest import random_items, random_prompts, tiny_llama

ITEMS = random_items(60)
SOME = ITEMS[:30].unique().tolist()
SETTINGS = {
    "repetition_penalty": 3.0, "encoder_repetition_penalty": 3.0, "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1, "suppress_tokens": SOME, "begin_suppress_tokens": SOME,
    "bad_words_ids": [[token] for token in SOME], "forced_bos_token_id": 7, "forced_eos_token_id": 2,
    "eos_token_id": [2, SOME[0]], "guidance_scale": 2.0, "renormalize_logits": True, "remove_invalid_values": True,
    "max_time": 1e-6, "stop_strings": ["a"], "num_beams": 1, "num_beam_groups": 2, "diversity_penalty": 0.5,
    "num_return_sequences": 1, "early_stopping": True, "length_penalty": 9.0, "max_length": 3, "min_length": 20,
    "min_new_tokens": 10, "exponential_decay_length_penalty": [1, 2.0], "sequence_bias": [[[SOME[0]], 5.0]],
    "watermarking_config": {"bias": 5.0, "seeding_scheme": "lefthash"}, "cache_implementation": "static",
    "use_cache": False, "do_sample": True, "temperature": 0.1, "top_k": 2, "penalty_alpha": 0.6, "dola_layers": "low",
    "prompt_lookup_num_tokens": 3, "prefill_chunk_size": 2, "low_memory": True, "token_healing": True,
    "constraints": [1], "output_attentions": True, "return_dict_in_generate": False, "a_field_of_ones_own": 1,
}  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_reference_is_beam_search_whatever_the_checkpoint_asks_of_generate(setting):
    model, (ids, mask) = tiny_llama(1, 2), random_prompts(2, 6)
    model.generation_config = GenerationConfig(eos_token_id=2)
    generate = make_methods(model, None, ITEMS, None, 3, names=(GENERATE,))[GENERATE].decode
    expected = generate(ids, mask, 5, None, [])
    setattr(model.generation_config, setting, SETTINGS[setting])
    bent = make_methods(model, None, ITEMS, None, 3, names=(GENERATE,))[GENERATE].decode(ids, mask, 5, None, [])
    assert torch.equal(bent.sequences, expected.sequences)
    torch.testing.assert_close(bent.scores, expected.scores)
    assert getattr(model.generation_config, setting) == SETTINGS[setting], "the caller's model keeps its own"
