"""Prompts with real SentencePiece and byte-level BPE tokenizers."""

import random
from copy import deepcopy

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from atspeed.checkpoints.base_models import init_model
from atspeed.checkpoints.loading import teach_tokenizer, write_tokenizer
from atspeed.checkpoints.shapes import SHAPES
from atspeed.prompts import encode_prompts, encode_samples, left_pad
from atspeed.template import PROMPT, PromptTemplate
from genrec.data.catalogue import Catalogue
from genrec.data.dataset import Sample
from genrec.runtime.errors import UserError
from genrec.runtime.files import write_json
from genrec.runtime.text import read_json

CATALOGUE = Catalogue({i: (f"<a_{i // 4}>", f"<b_{i % 4}>") for i in range(16)})
TOKENIZERS = {
    "llama": {},
    "llama, legacy": {"legacy": True},
    "llama, ends in EOS": {"add_eos_token": True},
    "BPE": None,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    init_model(folder, SHAPES["tiny"], seed=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(CATALOGUE.tokens)
    return tokenizer


@pytest.fixture
def base(request, tmp_path):
    """A model's folder, without weights: a tokenizer of LLaMA's class with other settings, or of GPT-2's kind."""
    settings = TOKENIZERS[request.param]
    if settings is None:
        bpe = ByteLevelBPETokenizer()
        bpe.train_from_iterator([PROMPT.format(history="10, 346, 718")], vocab_size=400, show_progress=False)
        PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>").save_pretrained(tmp_path)
    else:
        write_tokenizer(tmp_path)
        config = tmp_path / "tokenizer_config.json"
        write_json(config, read_json(config) | settings)
    LlamaConfig().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def any_tokenizer(base):
    return AutoTokenizer.from_pretrained(base)


each_tokenizer = pytest.mark.parametrize("base", TOKENIZERS, indirect=True)


@each_tokenizer
@pytest.mark.parametrize("form", ["<{}_{}>", "<|{}{}|>"])
def test_a_prompt_is_what_the_tokenizer_makes_of_its_text(any_tokenizer, form):
    catalogue = Catalogue({i: tuple(form.format("abcd"[d], i // 2**d % 4) for d in range(4)) for i in range(32)})
    any_tokenizer.add_tokens(catalogue.tokens)
    samples = [Sample(0, tuple(range(n, n + n)), (0,)) for n in (1, 2, 9)]
    text = [PROMPT.format(history=", ".join("".join(catalogue.identifiers[i]) for i in s.history)) for s in samples]
    whole = [ids[:-1] if ids[-1] == any_tokenizer.eos_token_id else ids for ids in any_tokenizer(text)["input_ids"]]
    assert encode_prompts(any_tokenizer, catalogue, samples, 512) == whole


@each_tokenizer
def test_identifiers_that_run_into_one_another_come_back_as_they_are(any_tokenizer):
    """As text, 10 346 718 774 is also 103 467 187 74. Some are in the vocabulary of BPE."""
    draw = random.Random(0)
    catalogue = Catalogue(
        {item: tuple(str(draw.randrange(256) + 256 * level) for level in range(4)) for item in range(300)}
    )
    any_tokenizer.add_tokens(catalogue.tokens)
    samples = [Sample(0, tuple(draw.randrange(300) for _ in range(5)), (0,)) for _ in range(20)]
    numbers = set(catalogue.tokens)
    for sample, prompt in zip(samples, encode_prompts(any_tokenizer, catalogue, samples, 512), strict=True):
        read = [token for token in any_tokenizer.convert_ids_to_tokens(prompt) if token in numbers]
        assert read == [token for item in sample.history for token in catalogue.identifiers[item]]
        assert any_tokenizer.eos_token_id not in prompt


@each_tokenizer
def test_training_reads_the_prompts_that_later_stages_read(base, tmp_path):
    """Of a LLaMA's with `legacy`, transformers 5 saves another tokenizer, with no space before a comma."""
    tokenizer, prompts = teach_tokenizer(str(base), CATALOGUE), []
    for generation in ("base", "target", "draft"):
        prompts.append(encode_prompts(tokenizer, CATALOGUE, [Sample(0, (1, 2, 3), (0,))], 512))
        tokenizer.save_pretrained(tmp_path / generation)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / generation)
    assert prompts[0] == prompts[1] == prompts[2]


@each_tokenizer
def test_an_identifier_token_that_the_prompt_itself_holds_is_refused(any_tokenizer):
    catalogue = Catalogue({0: ("<a_1>", "user"), 1: ("<a_1>", "<b_1>")})
    any_tokenizer.add_tokens(catalogue.tokens)
    with pytest.raises(UserError, match="identifier token 'user' is also a part of the prompt's text"):
        encode_prompts(any_tokenizer, catalogue, [Sample(0, (1,), (0,))], 512)


def test_the_prompt_is_the_papers_and_the_response_is_identifier_and_eos(tokenizer):
    encoded = encode_samples(tokenizer, CATALOGUE, [Sample(0, (5, 2), (7,)), Sample(1, (1,), (0, 3))], 512)
    (first, _), responses = encoded.prompts, encoded.responses
    assert tokenizer.decode(first, skip_special_tokens=True) == PROMPT.format(history="<a_1><b_1>, <a_0><b_2>")
    assert first[0] == tokenizer.bos_token_id
    assert [tokenizer.decode(r) for r in responses] == ["<a_1><b_3></s>", "<a_0><b_0></s>"]
    joined = tokenizer(PROMPT.format(history="<a_1><b_1>, <a_0><b_2>") + "<a_1><b_3>")["input_ids"]
    assert joined == first + responses[0, :-1].tolist(), "prompt and response are tokenised as one text would be"


def test_a_long_history_loses_its_oldest_items(tokenizer):
    long = Sample(0, tuple(range(16)), (0,))
    full, short = (encode_samples(tokenizer, CATALOGUE, [long], cutoff).prompts[0] for cutoff in (512, 80))
    assert len(full) > 77
    assert len(short) <= 80 - 3
    text = tokenizer.decode(short, skip_special_tokens=True)
    start = next(i for i in range(16) if f"items <a_{i // 4}><b_{i % 4}>," in text)
    assert start > 0
    kept = ", ".join("".join(CATALOGUE.identifiers[i]) for i in range(start, 16))
    assert text == PROMPT.format(history=kept)
    with pytest.raises(UserError, match="--cutoff 30"):
        encode_samples(tokenizer, CATALOGUE, [long], 30)


def test_left_pad():
    ids, mask = left_pad([[7], [5, 6, 7]])
    assert ids.tolist() == [[0, 0, 7], [5, 6, 7]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]


CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEMPLATES = {
    "own words": PromptTemplate("Bought so far: {history}\nNext: ", "; "),
    "quoted": PromptTemplate('Can you predict the next item after "{history}"?', '", "'),
    "history last": PromptTemplate("{history}", " "),
    "braces": PromptTemplate('{"history": [{history}]} {items}', ", "),
    "chat": PromptTemplate("The user has bought {history}. What is next?", ", ", chat=True),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_of_ones_own_is_what_the_tokenizer_makes_of_the_whole_text(tokenizer, name):
    template, chosen = TEMPLATES[name], deepcopy(tokenizer)
    chosen.chat_template = CHAT
    for history in ((3,), (3, 7, 3), tuple(range(12))):
        items = ["".join(CATALOGUE.identifiers[item]) for item in history]
        text = template.text.replace("{history}", template.separator.join(items))
        if template.chat:
            text = f"<|user|>{text}<|end|><|assistant|>"
        expected = chosen(text, add_special_tokens=not template.chat)["input_ids"]
        (prompt,) = encode_prompts(chosen, CATALOGUE, [Sample(0, history, ())], 512, template)
        assert prompt == expected


def test_a_template_is_read_from_a_file_and_refused_by_name(tokenizer, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("Bought: {history}\nNext:\n")
    assert PromptTemplate.read(str(path), "; ") == PromptTemplate("Bought: {history}\nNext:", "; ")
    assert PromptTemplate.read(None).text == PROMPT
    for text, times in (("nothing", 0), ("{history} and {history}", 2)):
        path.write_text(text)
        with pytest.raises(
            UserError, match=rf"--prompt_template {path}: a prompt needs {{history}} once.*{times} times"
        ):
            PromptTemplate.read(str(path))
    with pytest.raises(UserError, match=r"--prompt_template .*nowhere"):
        PromptTemplate.read(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        encode_prompts(tokenizer, CATALOGUE, [Sample(0, (3,), ())], 512, TEMPLATES["chat"])
