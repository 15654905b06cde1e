"""Prompts with a real SentencePiece tokenizer."""

import pytest
from transformers import AutoTokenizer

from atspeed.models import init_model
from atspeed.prompts import PROMPT, encode_samples, left_pad
from atspeed.shapes import SHAPES
from genrec.catalogue import Catalogue
from genrec.dataset import Sample
from genrec.errors import UserError

CATALOGUE = Catalogue({i: (f"<a_{i // 4}>", f"<b_{i % 4}>") for i in range(16)})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    init_model(folder, SHAPES["tiny"], seed=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(CATALOGUE.tokens)
    return tokenizer


def test_the_prompt_is_the_papers_and_the_response_is_identifier_and_eos(tokenizer):
    encoded = encode_samples(tokenizer, CATALOGUE, [Sample(0, (5, 2), (7,)), Sample(1, (1,), (0, 3))], 512)
    (first, _), responses = encoded.prompts, encoded.responses
    assert tokenizer.decode(first, skip_special_tokens=True) == PROMPT.format(items="<a_1><b_1>, <a_0><b_2>")
    assert first[0] == tokenizer.bos_token_id
    assert [tokenizer.decode(r) for r in responses] == ["<a_1><b_3></s>", "<a_0><b_0></s>"]
    joined = tokenizer(PROMPT.format(items="<a_1><b_1>, <a_0><b_2>") + "<a_1><b_3>")["input_ids"]
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
    assert text == PROMPT.format(items=kept)
    with pytest.raises(UserError, match="--cutoff 30"):
        encode_samples(tokenizer, CATALOGUE, [long], 30)


def test_left_pad():
    ids, mask = left_pad([[7], [5, 6, 7]])
    assert ids.tolist() == [[0, 0, 7], [5, 6, 7]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]
