"""What a checkpoint holds, and what is said of one that is damaged."""

from dataclasses import asdict

import pytest
from transformers import GenerationConfig

from atspeed.checkpoints import Setting, save_checkpoint
from atspeed.models import random_model
from genrec.artefacts import make_facts
from genrec.dataset import load_dataset
from genrec.toy import make_toy

CHAT = {  # as of Qwen2.5-Instruct, and what some checkpoints have beside it
    "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "do_sample": True,
    "eos_token_id": [5, 6], "suppress_tokens": [7], "no_repeat_ngram_size": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_toy(n_items=300, n_users=60).save(folder / "toy")
    return load_dataset(folder, "toy")


def test_nothing_that_a_base_model_asks_of_generate_is_in_a_checkpoint_but_its_special_tokens(data, tmp_path):
    model, tokenizer = random_model("tiny", data.catalogue, "float32", 0)
    model.generation_config = GenerationConfig(**CHAT)
    facts = make_facts("finetune_llama", {}, setting=asdict(Setting.of(data, 20, 512)))
    save_checkpoint(tmp_path / "target", model, tokenizer, data, facts)
    saved = GenerationConfig.from_pretrained(tmp_path / "target")
    assert saved.to_diff_dict().keys() - {"transformers_version"} == {"bos_token_id", "eos_token_id", "pad_token_id"}
    assert saved.eos_token_id == tokenizer.eos_token_id
