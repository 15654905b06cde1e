"""The drafter is chosen by what forwards cost and how often each was right; the lists do not depend on it."""

import pytest
import torch

from beamsd import Auto, Program, Trie, beam_search, speculate
from beamsd.speed.auto import PLAIN, TRIES, Choice, ChoiceHistory, _choose
from beamsd.speed.costs import Curve
from conftest import assert_same_lists, noisy_copy, random_items, random_prompts, tiny_llama


def priced(auto, target, draft, call, token):
    """Let forwards cost what we say: `call` seconds each, and `token` a token; the draft a tenth."""
    sizes = torch.tensor([1.0, 16, 64, 256])
    auto._curves[target] = Curve(tuple((call + token * sizes).tolist()))
    auto._curves[draft] = Curve(tuple(((call + token * sizes) / 10).tolist()))


def by_the_curves(monkeypatch):
    """Have the clock agree with the curves, so that what is chosen does not depend on this machine."""
    monkeypatch.setattr(ChoiceHistory, "learn", lambda history, _: history.time_ratios.append(1.0))


@pytest.mark.parametrize(
    ("noise", "call", "token", "chosen"),
    [
        (0.0, 1.0, 1e-6, "hybrid"),  # calls are all that costs, and the draft is right: one call
        (3.0, 1.0, 1e-6, "trie"),  # the draft is never right: two calls without it
        (3.0, 1e-6, 1.0, "none"),  # tokens are all that costs: nothing is drafted in vain
    ],
)
def test_the_cheapest_is_chosen(noise, call, token, chosen, monkeypatch):
    target = tiny_llama(1, 2)
    draft, trie, auto = noisy_copy(target, noise), Trie(random_items(400)), Auto(draft_width=12)
    priced(auto, target, draft, call, token)
    by_the_curves(monkeypatch)
    ids, mask = random_prompts(2, 9)
    options = {"trie": trie, "width": 6, "draft": draft}
    expected = beam_search(target, ids, mask, **options)
    for _ in range(40):
        assert_same_lists(auto.beam_search(target, ids, mask, **options), expected)
    (histories,) = auto._histories.values()
    most = max(histories, key=lambda choice: histories[choice].tries)
    assert most.drafter == chosen
    assert histories[PLAIN].tries >= TRIES
    assert f"| {most} | {histories[most].tries} |" in auto.report()


@pytest.mark.parametrize(
    ("noise", "options", "choices"),
    [
        (0.1, {"max_new_tokens": 4}, {"none", "model"}),  # no trie
        (None, {"trie": Trie(random_items(50))}, {"none", "trie"}),  # no draft
        (None, {"max_new_tokens": 4}, {"none"}),
        (0.1, {"trie": Trie(random_items(50)), "verification": "relaxed", "seeds": [1, 2]}, {"model"}),
        (0.1, {"trie": Trie(random_items(50)), "verification": "sample", "seeds": [1, 2]},
         {"none", "trie", "model", "hybrid"}),
    ],
)  # fmt: skip
def test_only_what_can_draft_is_among_the_choices(noise, options, choices):
    target, auto, (ids, mask) = tiny_llama(1, 2), Auto(), random_prompts(2, 9)
    draft = None if noise is None else noisy_copy(target, noise)
    for _ in range(3):
        auto.beam_search(target, ids, mask, draft=draft, width=4, **options)
    (histories,) = auto._histories.values()
    assert {choice.drafter for choice in histories} == choices
    assert auto.report().count("\n| ") >= len(choices)


def test_one_object_serves_requests_that_differ_in_who_may_draft():
    """A processor keeps the trie from drafting; without one it may again."""
    target, (ids, mask) = tiny_llama(1, 2), random_prompts(2, 9)
    decode = speculate(None, trie=Trie(random_items(200)))
    options = dict(input_ids=ids, attention_mask=mask, num_beams=4, max_new_tokens=4, do_sample=False)
    for processed in ({}, {"repetition_penalty": 1.3}, {}):
        for _ in range(6):
            target.generate(**options, **processed, custom_generate=decode)
    assert {len(requests.choices) for requests in decode.auto._histories} == {1, 2}


def test_capture_reaches_the_search(monkeypatch):
    monkeypatch.setattr("beamsd.speed.program.frozen", lambda body: body)  # compiling takes a minute
    target, (ids, mask) = tiny_llama(1, 2), random_prompts(2, 9)
    options = dict(input_ids=ids, attention_mask=mask, num_beams=4, max_new_tokens=4, do_sample=False)
    decode = speculate(None, trie=Trie(random_items(200)), drafter="none", capture=True)
    assert torch.equal(
        target.generate(**options, custom_generate=decode),
        target.generate(**options, custom_generate=speculate(None, trie=decode.trie, drafter="none")),
    )
    assert len(decode.program._runs) == 1


def history(tries):
    history = ChoiceHistory(tries)
    history.time_ratios.append(1.0)
    return history


TRIE, MODEL = Choice("trie"), Choice("model", 3)


@pytest.mark.parametrize(
    ("tries", "best_cases", "promise", "expected"),
    [
        ((0, 0, 0), {PLAIN: 5, TRIE: 1, MODEL: 1}, {}, (PLAIN, True)),
        ((9, 0, 0), {TRIE: 3, MODEL: 1}, {PLAIN: 2.0}, (MODEL, True)),  # the trie's best case is no better than plain
        ((9, 0, 3), {TRIE: 3}, {PLAIN: 2.0, MODEL: 1.0}, (MODEL, False)),
        (
            (3, 0, 60),
            {TRIE: 3},
            {PLAIN: 2.0, MODEL: 1.0},
            (PLAIN, True),
        ),  # however slow it was
        ((9, 3, 3), {}, {PLAIN: 2.0, TRIE: 1.99, MODEL: 3.0}, (PLAIN, False)),  # a gain of less than three per cent
        ((90, 3, 3), {}, {PLAIN: 2.0, TRIE: 2.2, MODEL: 3.0}, (TRIE, True)),  # it may have been misjudged
        ((90, 5, 3), {}, {PLAIN: 2.0, TRIE: 2.2, MODEL: 3.0}, (PLAIN, False)),  # not so soon again
    ],
)
def test_a_decision(tries, best_cases, promise, expected):
    histories = dict(zip((PLAIN, TRIE, MODEL), map(history, tries), strict=True))
    assert _choose(histories, best_cases, promise) == expected


def test_what_was_timed_while_the_machine_was_busy_is_forgotten():
    history = ChoiceHistory()
    for off in (9.0, 12.0, 10.0, 1.1, 1.3, 1.0):
        history.learn(off)
    assert list(history.time_ratios) == [1.1, 1.3, 1.0]


def test_time_is_linear_between_what_was_measured_and_beyond():
    curve = Curve((1.0, 2.5, 3.0, 6.0))
    assert [curve(tokens) for tokens in (1, 8.5, 64, 160, 448)] == [1.0, 1.75, 3.0, 4.5, 9.0]


def test_speculate_learns_from_call_to_call():
    target = tiny_llama(1, 2)
    decode = speculate(noisy_copy(target, 0.1), trie=Trie(random_items(200)))
    assert decode.report() == "no request yet"
    ids, mask = random_prompts(2, 9)
    for _ in range(6):
        target.generate(
            input_ids=ids, attention_mask=mask, num_beams=4, max_new_tokens=4, do_sample=False, custom_generate=decode
        )
    assert "batch 2, K 4, 4 tokens" in decode.report()
    assert "| none | " in decode.report()


@torch.inference_mode()
def test_only_what_is_chosen_is_compiled_and_padding_is_not_mistaken_for_drafts(monkeypatch):
    target, (ids, mask), shapes = tiny_llama(1, 2), random_prompts(2, 9), []

    def compiler(body):
        def compiled(**inputs):
            shapes.append(inputs["input_ids"].shape[1])
            return body(**inputs)

        return compiled

    auto, program = Auto(), Program(compiler=compiler)
    by_the_curves(monkeypatch)
    priced(auto, target, target, call=1e-6, token=1.0)  # nothing is drafted in vain
    for _ in range(40):
        auto.beam_search(target, ids, mask, width=4, trie=Trie(random_items(200)), program=program)
    assert set(shapes) == {32, 4}  # the prompt, then four beams at a time
    (histories,) = auto._histories.values()
    assert {f.target for f in histories[PLAIN].forwards} == {(0, 4, 4, 4)}
