"""Exactness of the decoder: against brute force, and against transformers' `generate`."""

import pytest
import torch

from beamsd import Clock, Prefix, Trace, Trie, beam_search
from conftest import (
    ARCHITECTURES,
    LENGTH,
    VOCABULARY,
    noisy_copy,
    random_items,
    random_prompts,
    tiny_llama,
    tiny_model,
)


def brute_force(model, items, ids, mask, width):
    """Unbatched, uncached beam search, one forward a prefix: [(sequence, score)] a request."""
    legal = {tuple(item[:depth]) for item in items.tolist() for depth in range(LENGTH + 1)}
    lists = []
    for row, seen in zip(ids, mask, strict=True):
        prompt, beams = row[seen.bool()].tolist(), [((), 0.0)]
        for _ in range(LENGTH):
            grown = []
            for prefix, score in beams:
                log_probs = model(torch.tensor([prompt + list(prefix)])).logits[0, -1].float().log_softmax(-1)
                grown += [
                    ((*prefix, token), score + log_probs[token].item())
                    for token in range(VOCABULARY)
                    if (*prefix, token) in legal
                ]
            beams = sorted(grown, key=lambda beam: -beam[1])[:width]
        lists.append(beams)
    return lists


def assert_lists_equal(result, lists):
    for sequences, scores, found, expected in zip(result.sequences, result.scores, result.found, lists, strict=True):
        assert found == len(expected)
        assert [tuple(s) for s in sequences[:found].tolist()] == [sequence for sequence, _ in expected]
        torch.testing.assert_close(scores[:found], torch.tensor([score for _, score in expected]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("gamma", [0, 1, 2, 3, 6])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("draft_seed", "draft_width"),
    [(1, 12), (7, 12), (7, 24), (8, 5)],
    ids=["target itself", "sometimes", "often", "narrow"],
)
def test_equals_brute_force(gamma, attention, draft_seed, draft_width):
    items, (ids, mask) = random_items(200), random_prompts(3, 9)
    target, draft = tiny_llama(1, 2), tiny_llama(draft_seed, 2 if draft_seed == 1 else 1)
    for model in (target, draft):
        model.set_attn_implementation(attention)
    result = beam_search(
        target, ids, mask, trie=Trie(items), width=5, draft=draft, draft_width=draft_width, gamma=gamma
    )
    with torch.no_grad():
        assert_lists_equal(result, brute_force(target, items, ids, mask, 5))


def test_a_drafter_equal_to_the_target_is_accepted_throughout():
    """Only at draft width = width: a wider draft may keep children of beams that the target would have dropped."""
    items, (ids, mask) = random_items(200), random_prompts(3, 9)
    target = tiny_llama(1, 2)
    options = {"draft_width": 5, "gamma": 3, "constrained_softmax": False}  # illegal tokens and all
    result = beam_search(target, ids, mask, trie=Trie(items), width=5, draft=target, **options)
    assert result.accepted.tolist() == [[3]] * 3


def generate(model, items, ids, mask, width):
    """Beam search of transformers, constrained to the items."""
    children = {}
    for item in items.tolist():
        for depth in range(LENGTH):
            children.setdefault(tuple(item[:depth]), set()).add(item[depth])
    return model.generate(
        input_ids=ids, attention_mask=mask, num_beams=width, num_return_sequences=width, max_new_tokens=LENGTH,
        do_sample=False, return_dict_in_generate=True, output_scores=True, pad_token_id=0, eos_token_id=None,
        prefix_allowed_tokens_fn=lambda _, sent: sorted(children.get(tuple(sent[ids.shape[1] :].tolist()), {4})),
    )  # fmt: skip


GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"))


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("width", [1, 3, 10, 20, 50])
@pytest.mark.parametrize("gamma", [0, 3])
def test_equals_generate(width, gamma, device):
    """Also where K exceeds the first codes (8) and the prompt (4)."""
    items, (ids, mask) = random_items(400), (tensor.to(device) for tensor in random_prompts(2, 4))
    target, draft = tiny_llama(1, 2).to(device), tiny_llama(7, 1).to(device)
    expected = generate(target, items, ids, mask, width)
    result = beam_search(target, ids, mask, trie=Trie(items), width=width, draft=draft, draft_width=50, gamma=gamma)
    assert result.sequences.flatten(0, 1).tolist() == expected.sequences[:, ids.shape[1] :].tolist()
    if width > 1:  # one beam is greedy search there, which gives no score
        torch.testing.assert_close(result.scores.flatten() / LENGTH, expected.sequences_scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_generate_for_other_decoder_only_models(architecture):
    """Learned and rotary positions, tied and untied embeddings, with and without grouped-query attention."""
    target = tiny_model(architecture)
    items, (ids, mask) = random_items(200), random_prompts(3, 9)
    expected = generate(target, items, ids, mask, 5)
    for gamma in (0, 3):
        result = beam_search(
            target, ids, mask, trie=Trie(items), width=5, draft=noisy_copy(target, 0.1), draft_width=12,
            gamma=gamma,
        )  # fmt: skip
        assert result.sequences.flatten(0, 1).tolist() == expected.sequences[:, 9:].tolist()
        torch.testing.assert_close(result.scores.flatten() / LENGTH, expected.sequences_scores, atol=1e-4, rtol=1e-4)
    assert (result.target_calls < LENGTH).all(), "the draft should have been of use"


def test_a_sliding_window_is_refused_by_name_where_prompt_and_answer_exceed_it():
    model, items = tiny_model("mistral", sliding_window=9), random_items(50)
    ids, mask = random_prompts(1, 5)
    result = beam_search(model, ids, mask, trie=Trie(items), width=5)
    assert result.sequences[0].tolist() == generate(model, items, ids, mask, 5).sequences[:, 5:].tolist()
    ids, mask = random_prompts(1, 6)
    with pytest.raises(ValueError, match="MistralForCausalLM uses sliding-window attention over 9 tokens, fewer than"):
        beam_search(model, ids, mask, trie=Trie(items), width=5)


@pytest.mark.parametrize("gamma", [0, 1, 3])
def test_fewer_legal_items_than_beams_are_all_returned_and_counted(gamma):
    items, (ids, mask) = random_items(3), random_prompts(2, 6)
    target, draft = tiny_llama(1, 2), tiny_llama(7, 1)
    result = beam_search(target, ids, mask, trie=Trie(items), width=10, draft=draft, draft_width=12, gamma=gamma)
    assert result.found.tolist() == [len(items)] * 2
    with torch.no_grad():
        assert_lists_equal(result, brute_force(target, items, ids, mask, 10))
    assert (result.sequences[:, len(items) :] == 0).all()
    if gamma == 3:
        assert (result.target_calls == 1).all(), "a draft that holds the whole catalogue cannot miss"


@pytest.mark.parametrize("gamma", [0, 1, 3])
def test_a_batch_gives_what_single_requests_give(gamma):
    items, (ids, mask) = random_items(300), random_prompts(4, 12)
    target = tiny_llama(1, 2)
    draft = noisy_copy(target, 0.2)
    options = dict(trie=Trie(items), width=3, draft=draft, draft_width=24, gamma=gamma)
    batch = beam_search(target, ids, mask, **options)
    assert batch.target_calls.unique().numel() > 1 or gamma < 3, "the rows should accept different depths"
    for row in range(4):
        prompt = ids[row][mask[row].bool()][None]
        alone = beam_search(target, prompt, **options)
        assert torch.equal(alone.sequences[0], batch.sequences[row])
        assert alone.target_calls[0] == batch.target_calls[row]
        assert alone.accepted[0].tolist() == [a for a in batch.accepted[row].tolist() if a >= 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_run_and_stay_in_the_catalogue(dtype):
    items, (ids, mask) = random_items(200), random_prompts(3, 9)
    target = tiny_llama(1, 2)
    options = {"trie": Trie(items), "width": 5, "draft_width": 12, "gamma": 2}
    exact = beam_search(target, ids, mask, draft=target, **options)
    target.to(dtype)
    result = beam_search(target, ids, mask, draft=target, **options)
    legal = set(map(tuple, items.tolist()))
    lists = [[set(map(tuple, row.tolist())) for row in found.sequences] for found in (exact, result)]
    assert all(len(row) == 5 and row <= legal for row in lists[1])
    overlap = sum(len(a & b) for a, b in zip(*lists, strict=True)) / 15
    assert overlap == 1 if dtype == torch.float64 else overlap >= 0.6


def test_clock_sums_every_part_and_changes_nothing():
    items, (ids, mask) = random_items(100), random_prompts(2, 6)
    target, clock = tiny_llama(1, 2), Clock()
    options = dict(trie=Trie(items), width=5, draft=target, draft_width=5, gamma=1)
    timed = beam_search(target, ids, mask, clock=clock, **options)
    assert torch.equal(timed.sequences, beam_search(target, ids, mask, **options).sequences)
    seconds = clock.seconds()
    assert set(seconds) == {"draft", "target", "verify"}
    assert all(s > 0 for s in seconds.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(draft=None), "needs a draft model"),
        (dict(draft_width=4), "below width=5"),
        (dict(width=0), "at least 1"),
        (dict(attention_mask=torch.tensor([[1, 1, 0]])), "left-padded"),
        (dict(attention_mask=torch.ones(1, 2)), r"\(B, P\)"),
        (dict(trie=Trie(torch.tensor([[5, 99]]))), "another tokenizer"),
        (dict(draft=tiny_llama(1, 1, vocabulary=7)), "the draft's vocabulary ends at 6"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    target = tiny_llama(1, 1)
    options = dict(attention_mask=None, trie=Trie(random_items(9)), width=5, draft=target, draft_width=5, gamma=2)
    with pytest.raises(ValueError, match=message):
        beam_search(target, torch.tensor([[5, 6, 7]]), **(options | change))


@torch.inference_mode()
def test_a_trace_holds_what_the_target_said_before_every_token():
    model, items = tiny_llama(0, layers=2), random_items(30)
    ids, mask = random_prompts(3, 6)
    trie, trace = Trie(items), Trace()
    result = beam_search(model, ids, mask, width=5, trie=trie, trace=trace)
    for row, seen in enumerate(mask.bool()):
        prompt = ids[row][seen]
        for sequence, ranks in zip(result.sequences[row], result.ranks[row], strict=True):
            for level in range(LENGTH):
                logits = model(torch.cat([prompt, sequence[:level]])[None]).logits[0, -1].float()
                state, said = trace.states[level][row, ranks[level]], trace.log_probs[level][row, ranks[level]]
                children = trie.children(state)
                assert state == trie.walk(sequence)[level]
                expected = logits.log_softmax(-1)[trie.tokens[children]].masked_fill(children == trie.dead, -torch.inf)
                torch.testing.assert_close(said, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [{"trie": None, "max_new_tokens": 4}, {"drafter": "trie"}, {"verification": "sample", "seeds": [1, 2, 3]}],
)
def test_a_trace_of_more_than_plain_beam_search_is_refused(settings):
    ids, mask = random_prompts(3, 6)
    settings = {"trie": Trie(random_items(30)), "drafter": "none"} | settings
    with pytest.raises(ValueError, match="trace takes a trie"):
        beam_search(tiny_llama(0, layers=1), ids, mask, width=5, trace=Trace(), **settings)


@pytest.mark.parametrize(
    ("moved", "message"),
    [
        ("draft", "the draft is on meta and the prompts are on cpu: put target, draft and prompts on one device"),
        ("target", "the target is on meta and the prompts are on cpu"),
        ("attention_mask", "input_ids are on cpu and attention_mask on meta"),
    ],
)
def test_what_is_on_another_device_is_named(moved, message):
    ids, mask = random_prompts(2, 4)
    given = {"target": tiny_llama(1, 1), "draft": tiny_llama(2, 1), "input_ids": ids, "attention_mask": mask}
    given[moved] = given[moved].to("meta")
    with pytest.raises(ValueError, match=message):
        beam_search(**given, width=3, gamma=2, max_new_tokens=3)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kept", [False, True], ids=["no prefix", "prefix"])
def test_prompts_without_padding_are_read_without_a_mask(padded, kept, monkeypatch):
    """So that flash kernels serve, and no mask over all pairs of the prompt's tokens is held."""
    target, draft, ids = tiny_llama(1, 2), tiny_llama(2, 1), torch.randint(3, VOCABULARY, (3, 9))
    ids[:, :2] = torch.tensor([5, 7])
    mask = torch.ones_like(ids)
    mask[0, :4] = not padded
    ids[0, 4:6] = torch.tensor([5, 7])
    prefix, trie = Prefix([5, 7]) if kept else None, Trie(random_items(60))
    plain = [
        beam_search(target, row[seen.bool()][None], trie=trie, width=4) for row, seen in zip(ids, mask, strict=True)
    ]
    masks, attention = [], torch.nn.functional.scaled_dot_product_attention

    def watched(query, *args, attn_mask=None, **kwargs):
        if query.shape[-2] >= 7:  # the prompt, with or without the prefix
            masks.append(attn_mask is not None)
        return attention(query, *args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    result = beam_search(target, ids, mask, trie=trie, width=4, draft=draft, gamma=1, draft_width=4, prefix=prefix)
    assert masks[0] == (padded or kept), "the draft, which reads the prompt alone"
    beam_search(target, ids, mask, trie=trie, width=4, prefix=prefix)
    assert masks[-1] == (padded or kept)
    assert result.sequences.tolist() == [row.sequences[0].tolist() for row in plain]
