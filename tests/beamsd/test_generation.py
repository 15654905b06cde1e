"""`generate(custom_generate=speculate(...))` against `generate`, for anything that `generate` can be asked."""

from copy import deepcopy
from functools import wraps

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
)

from against_generate import INVALID_SCORE, assert_same, children_of
from beamsd import (
    Clock,
    Tree,
    Trie,
    beam_search_by_SD,
    beam_search_by_SD_4timing,
    beam_search_by_TreeAttn,
    replace_beam_search_with_TreeAttn,
    speculate,
)
from conftest import VOCABULARY, noisy_copy, random_items, random_prompts, tiny_llama


def ask(**flags):
    """The arguments of a free-text request of three prompts, each longer than the next."""
    ids, mask = random_prompts(3, 9)
    return dict(
        input_ids=ids, attention_mask=mask, num_beams=4, num_return_sequences=4, max_new_tokens=12, do_sample=False,
        return_dict_in_generate=True, output_scores=True, eos_token_id=[2, 5, 6, 7], pad_token_id=1,
    ) | flags  # fmt: skip


@pytest.mark.parametrize("gamma", [0, 1, 3])
def test_a_batch_gives_what_single_requests_give(gamma):
    target = tiny_llama(1, 2)
    decode = speculate(noisy_copy(target, 0.05), drafter="model", draft_width=8, gamma=gamma)
    batch = target.generate(**ask(), custom_generate=decode)
    assert batch.target_calls.unique().numel() > 1, "the rows should end in different rounds"
    for row in range(3):
        every = ask()
        prompt = every["input_ids"][row][every["attention_mask"][row].bool()][None]
        alone = target.generate(**ask(input_ids=prompt, attention_mask=None), custom_generate=decode)
        answers = [
            [s[s != 1].tolist() for s in output.sequences[start : start + 4, length:]]
            for output, start, length in [(alone, 0, prompt.shape[1]), (batch, 4 * row, 9)]
        ]
        assert answers[0] == answers[1]
        assert alone.target_calls[0] == batch.target_calls[row]
        assert alone.accepted[0].tolist() == [a for a in batch.accepted[row].tolist() if a >= 0]


@pytest.mark.parametrize(("gamma", "noise"), [(0, 0), (2, 0.02), (3, 3)])
def test_long_texts_equal_generate_and_drop_their_dead_nodes(gamma, noise, monkeypatch):
    """Many compactions: of rows with different numbers of live nodes, before and after drafts."""
    kept = []
    original = Tree.keep
    monkeypatch.setattr(Tree, "keep", lambda tree, *args: kept.append(tree.size) or original(tree, *args))
    target = tiny_llama(1, 2)
    request = ask(max_new_tokens=100, eos_token_id=2, min_new_tokens=90)
    expected = target.generate(**request)
    decode = speculate(noisy_copy(target, noise), drafter="model", draft_width=6, gamma=gamma)
    output = target.generate(**request, custom_generate=decode)
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.equal(output.beam_indices, expected.beam_indices)
    assert len(kept) >= 3
    # At worst all K beams differ from the first token on, which only the last texts here come near to.
    assert max(kept) < 9 + 4 * 100 + 17 * (gamma * 6 + 4)


def test_a_draft_equal_to_the_target_writes_free_text_in_a_quarter_of_the_calls():
    target = tiny_llama(1, 2)
    output = target.generate(
        **ask(eos_token_id=None), custom_generate=speculate(target, drafter="model", draft_width=4)
    )
    assert output.accepted.tolist() == [[3, 3, 3]] * 3
    assert output.target_calls.tolist() == [3] * 3


def test_the_draft_never_asks_prefix_allowed_tokens_fn_for_an_illegal_prefix():
    """It may raise there, and it may differ from row to row."""
    target = tiny_llama(1, 2)
    catalogues = [children_of(random_items(8, seed=row).tolist(), eos=None) for row in range(3)]
    request = ask(
        num_beams=3, num_return_sequences=3, max_new_tokens=4, eos_token_id=None,
        prefix_allowed_tokens_fn=lambda row, sequence: sorted(catalogues[row][tuple(sequence[9:].tolist())]),
    )  # fmt: skip
    expected = target.generate(**request)
    output = target.generate(
        **request, custom_generate=speculate(noisy_copy(target, 0.1), drafter="model", draft_width=30)
    )
    assert torch.equal(output.sequences, expected.sequences)
    assert (output.accepted > 0).any(), "the draft should know of the constraint"


def test_fewer_legal_sequences_than_beams_are_all_returned_and_counted():
    target, trie = tiny_llama(1, 2), Trie.from_sequences([[9], [9, 10], [11, 12]])
    output = target.generate(**ask(num_beams=5, num_return_sequences=5), custom_generate=speculate(target, trie=trie))
    assert output.found.tolist() == [3] * 3
    answers = output.sequences[:, 9:].view(3, 5, -1)
    for row in answers.tolist():
        assert sorted(row[:3]) == [[9, 2, 1], [9, 10, 2], [11, 12, 2]]
        assert row[3:] == [[1, 1, 1]] * 2
    assert output.sequences_scores.view(3, 5).isneginf().tolist() == [[False] * 3 + [True] * 2] * 3


LONE = [[3], [3, 17, 8]]  # after its only first token, one beam of two has nowhere to go but the end
FEW = [[9], [9, 10], [11, 12]]


@pytest.mark.parametrize(
    ("sequences", "width", "early_stopping", "differs"),
    [
        (LONE, 2, True, True),  # two sequences, and `generate` finds one: junk counted as the second that ended
        (LONE, 2, False, False),
        (LONE, 2, "never", False),
        ([*LONE, [4, 7], [5, 8]], 2, True, False),  # two beams at every level: no junk
        (FEW, 5, False, True),  # fewer sequences than beams: ours are the same, its list is filled up with junk
        (FEW, 5, True, True),
    ],
)
def test_lists_under_a_trie_differ_only_where_transformers_fills_them_with_junk(
    sequences, width, early_stopping, differs
):
    target, children = tiny_llama(1, 2), children_of(sequences, 2)
    request = ask(
        num_beams=width, num_return_sequences=width, eos_token_id=2, early_stopping=early_stopping, length_penalty=1.0,
        input_ids=random_prompts(1, 6, 183)[0], attention_mask=None,
    )  # fmt: skip
    expected = target.generate(
        **request,
        prefix_allowed_tokens_fn=lambda row, sequence: sorted(children.get(tuple(sequence[6:].tolist()), {2})),
    )
    output = target.generate(**request, custom_generate=speculate(None, trie=Trie.from_sequences(sequences)))
    real = expected.sequences_scores > INVALID_SCORE
    assert real.all() != differs
    assert output.found == min(width, len(sequences)), "ours are all that there are"
    assert set(expected.sequences[real, :7].flatten().tolist()) <= set(output.sequences[:, :7].flatten().tolist())
    if not differs:
        assert_same(expected, output, 6)


def test_without_return_dict_it_returns_the_sequences():
    target = tiny_llama(1, 2)
    request = ask(return_dict_in_generate=False)
    assert torch.equal(target.generate(**request, custom_generate=speculate(None)), target.generate(**request))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_writes_much_the_same(dtype):
    target = tiny_llama(1, 2).to(dtype)
    texts = [
        {tuple(s) for s in target.generate(**ask(max_new_tokens=4), **how).sequences.tolist()}
        for how in ({}, {"custom_generate": speculate(noisy_copy(target, 0.05), drafter="model")})
    ]
    assert len(texts[0] & texts[1]) >= 8, "of twelve"


MODES = {
    "beams": {},
    "greedy": {"num_beams": 1, "num_return_sequences": 1},
    "sampling": {"num_beams": 1, "num_return_sequences": 1, "do_sample": True},
    "beams that sample": {"do_sample": True},
}


@pytest.mark.parametrize("mode", MODES)
def test_replaced_beam_search_is_the_same_and_nothing_else_is_replaced(mode):
    model, rows = tiny_llama(1, 2), []
    body = model.model
    body.register_forward_pre_hook(lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    torch.manual_seed(0)
    expected = model.generate(**ask(**MODES[mode]))
    rows.clear()
    assert replace_beam_search_with_TreeAttn(model) is model
    torch.manual_seed(0)
    output = model.generate(**ask(**MODES[mode]))
    assert torch.equal(output.sequences, expected.sequences)
    assert hasattr(output, "target_calls") == (mode == "beams")
    # A tree holds all beams of a prompt in one row; transformers holds each in a row of its own.
    assert rows[-1] == (12 if mode == "beams that sample" else 3)
    assert deepcopy(model).generate.__self__ is not model, "a copy should search with its own weights"


def test_the_functions_of_beamsd_take_their_sizes_from_the_generation_configs():
    target_model = tiny_llama(1, 2)
    draft_model = noisy_copy(target_model, 0.05)
    ids, mask = random_prompts(2, 6)
    inputs = {"input_ids": ids, "attention_mask": mask}
    by_tree = beam_search_by_TreeAttn(target_model, inputs, max_new_tokens=7, beam_size=5)
    one = target_model.generate(**inputs, max_new_tokens=7, num_beams=5)
    assert torch.equal(by_tree.sequences, one)

    gamma, draft_beam_size = 2, 9
    target_model.generation_config.update(max_new_tokens=7, num_beams=5, num_return_sequences=5)
    draft_model.generation_config.update(
        max_new_tokens=gamma, num_beams=draft_beam_size, num_return_sequences=draft_beam_size
    )
    expected = target_model.generate(**inputs)
    drafted = []
    draft_model.lm_head.register_forward_hook(lambda _, args, out: drafted.append(out.shape))
    outputs = beam_search_by_SD(target_model, draft_model, inputs)
    assert torch.equal(outputs.sequences, expected)
    assert outputs.seconds is None
    assert max(shape[1] for shape in drafted) == draft_beam_size
    assert (outputs.accepted <= gamma).all()
    assert len(drafted) <= 1 + gamma * outputs.accepted.shape[1] + 3, "and three of the first look at the model"
    outputs = beam_search_by_SD_4timing(target_model, draft_model, inputs)
    assert torch.equal(outputs.sequences, expected)
    assert set(outputs.seconds) == {"draft", "target", "verify"}
    assert min(outputs.seconds.values()) > 0
    alone = beam_search_by_SD(target_model, draft_model, ids[1:, 2:], clock=(clock := Clock()), gamma=1)
    assert alone.accepted.max() <= 1
    assert set(clock.seconds()) == {"draft", "target", "verify"}


def test_a_checkpoint_that_samples_is_refused_until_it_is_told_not_to():
    target = tiny_llama(1, 2)
    target.generation_config = GenerationConfig(
        do_sample=True, temperature=0.6, top_k=5, eos_token_id=2, pad_token_id=0
    )
    request = ask()
    del request["do_sample"]
    with pytest.raises(ValueError, match="do_sample=True, perhaps from the checkpoint's generation_config"):
        target.generate(**request, custom_generate=speculate(None))
    output = target.generate(**request, do_sample=False, custom_generate=speculate(None))
    assert torch.equal(output.sequences, target.generate(**request, do_sample=False).sequences)


SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        ("t5", {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
         "T5ForConditionalGeneration is an encoder-decoder"),
        ("mamba", {}, "MambaForCausalLM keeps a state"),
        ("bloom", {"n_layer": 2, "n_head": 4}, "BloomForCausalLM takes no position_ids"),
        ("falcon", {"alibi": True}, "FalconForCausalLM with sdpa attention cannot read a token tree"),
        ("gpt_neo", {"num_layers": 2, "attention_types": [[["global", "local"], 1]]}, "GPTNeoForCausalLM has local"),
        ("gemma2", {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}, "over 8 tokens, fewer than the 21"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_read_a_tree_is_refused_by_name(architecture, config, message):
    make = AutoModelForSeq2SeqLM if architecture == "t5" else AutoModelForCausalLM
    model = make.from_config(AutoConfig.for_model(architecture, **(SMALL | config))).eval()
    with pytest.raises(ValueError, match=message):
        model.generate(**ask(), custom_generate=speculate(None))


def test_a_model_that_ignores_the_tree_mask_is_found_out():
    """As flash attention would: the first look at a model compares a tree with its paths."""
    model = tiny_llama(1, 2)
    forward = model.model.forward
    model.model.forward = wraps(forward)(lambda *args, attention_mask=None, **kwargs: forward(*args, **kwargs))
    with pytest.raises(ValueError, match="LlamaForCausalLM with sdpa attention does not follow the attention mask"):
        model.generate(**ask(), custom_generate=speculate(None))


TRIE = Trie.from_sequences([[9], [9, 10], [11, 12]])


@pytest.mark.parametrize(
    ("how", "flags", "message"),
    [
        ({"draft_width": 3}, {}, "draft_width=3 is below width=4"),
        ({"draft_width": 1000}, {}, "exceeds the 160 continuations"),
        (
            {"draft": tiny_llama(1, 1, vocabulary=41)},
            {},
            r"differ in vocabulary: 40 and 41 .*resize_token_embeddings\(40\)",
        ),
        (
            {"draft": tiny_llama(1, 1, vocabulary=20)},
            {},
            "the prompts hold token 39, the draft's vocabulary ends at 19",
        ),
        ({"trie": [[9, 10]]}, {}, r"trie must be a Trie, not a list: pass Trie.from_sequences"),
        ({"trie": torch.tensor([[9, 10]])}, {}, r"trie must be a Trie, not a Tensor: .* Trie\(...\) of a tensor"),
        ({"trie": Trie(torch.tensor([[5, 99]]))}, {}, "the trie holds token 99"),
        ({"trie": TRIE}, {"eos_token_id": None}, "set eos_token_id"),
        ({"trie": TRIE}, {"eos_token_id": 40}, "eos_token_id is token 40, the target's vocabulary ends at 39"),
        ({"verification": "loose"}, {}, "one of strict, relaxed, coupled, sample, not 'loose'"),
        ({}, {"output_attentions": True}, "output_attentions=True"),
        ({}, {"output_logits": True}, "output_logits=True"),
        pytest.param(
            {},
            {"cache_implementation": "offloaded"},
            "cache_implementation='offloaded'",
            marks=pytest.mark.skipif(
                bool(torch.version.cuda) and not torch.cuda.is_available(),
                reason="transformers itself asks a CUDA build of torch for a GPU first",
            ),
        ),
        ({}, {"inputs_embeds": torch.zeros(3, 9, 32)}, "takes input_ids and attention_mask, not inputs_embeds"),
        ({}, {"position_ids": torch.arange(9).expand(3, 9)}, "position_ids of your own"),
        ({}, {"attention_mask": torch.tensor([[1] * 8 + [0]] * 3)}, "left-padded"),
        ({"gamma": -1}, {}, "gamma at least 0"),
    ],
)
def test_what_does_not_fit_is_refused(how, flags, message):
    target = tiny_llama(1, 2)
    with pytest.raises(ValueError, match=message):
        target.generate(**ask(**flags), custom_generate=speculate(**({"draft": target, "drafter": "model"} | how)))


@pytest.mark.parametrize("vocabulary", [30, 64])
@pytest.mark.parametrize("how", [{"drafter": "model"}, {"drafter": "hybrid"}, {}])
def test_a_draft_with_other_padding_of_its_vocabulary_drafts_under_a_trie(how, vocabulary):
    """As Qwen's sizes differ: 152,064 and 151,936 rows for one tokenizer."""
    target, draft = tiny_llama(1, 2), tiny_llama(2, 1, vocabulary=vocabulary)
    items = random_items(200) % 25 + 3
    request = ask(input_ids=random_prompts(3, 9)[0] % 30, max_new_tokens=4, eos_token_id=None)
    children = children_of(items.tolist(), None)
    expected = target.generate(
        **request, prefix_allowed_tokens_fn=lambda row, sequence: sorted(children[tuple(sequence[9:].tolist())])
    )
    output = target.generate(**request, custom_generate=speculate(draft, trie=Trie(items), **how))
    assert_same(expected, output, 9)
