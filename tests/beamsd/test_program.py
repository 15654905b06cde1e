"""Captured rounds give what uncaptured ones give, request after request, in the same buffers."""

import pytest
import torch

from beamsd import Clock, Program, Trie, beam_search
from beamsd.search.state import SearchState
from beamsd.speed.program import CaptureError, NoHostSyncs
from conftest import (
    DRAFTERS,
    PROGRAMS,
    Tape,
    assert_same_lists,
    noisy_copy,
    random_items,
    random_prompts,
    tiny_llama,
    tiny_model,
)


def uneven_items():
    """Half of the first tokens have 64 continuations of two tokens, the others 8, so that levels differ in width."""
    items = random_items(4096 * 3)
    return items[(items[:, 0] % 2 == 0) | (items[:, 2] == 20)]


SEARCHES = DRAFTERS | {"none": {}, "model": {"gamma": 2, "draft_width": 9}}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("verification", ["strict", "sample"])
@pytest.mark.parametrize("search", SEARCHES)
@torch.inference_mode()
def test_captured_rounds_give_what_others_give(search, verification, program):
    """The second request takes the recordings of the first where its rounds take the same path."""
    target, trie, program = tiny_llama(1, 2), Trie(uneven_items()), PROGRAMS[program]()
    options = {"trie": trie, "width": 6, "draft": noisy_copy(target, 0.1), "verification": verification}
    for seed, length in enumerate([9, 11, 9, 40, 5, 6]):
        ids, mask = random_prompts(3, length, seed)
        options["seeds"] = [seed, seed + 1, 7]
        captured = beam_search(target, ids, mask, program=program, **options, **SEARCHES[search])
        assert_same_lists(captured, beam_search(target, ids, mask, **options))
        rows = captured.sequences.tolist()
        assert all(len({tuple(s) for s in row}) == 6 for row in rows), "beams should differ from one another"


def test_a_path_is_recorded_once():
    target, trie, program = tiny_llama(1, 2), Trie(random_items(200)), Program(recorder=Tape)
    before = Tape.made
    for seed in range(4):
        ids, mask = random_prompts(2, 9, seed)
        beam_search(target, ids, mask, trie=trie, width=6, program=program)
    assert Tape.made == before + 1 + 4, "the prompt, and four rounds"


def test_levels_of_other_widths_are_recorded_apart():
    target, trie, program = tiny_llama(1, 2), Trie(uneven_items()), Program(recorder=Tape)
    before, widths = Tape.made, set()
    for seed in range(12):
        ids, mask = random_prompts(1, 9, seed)
        captured = beam_search(target, ids, mask, trie=trie, width=6, program=program, drafter="trie", nodes=70)
        assert_same_lists(captured, beam_search(target, ids, mask, trie=trie, width=6))
        widths.add(captured.target_tokens)
    assert Tape.made == before + 2 + len(widths) > before + 3, "the prompt and the first round, and every other second"


@pytest.mark.parametrize("eos", [None, 2])
@torch.inference_mode()
def test_captured_free_text(eos):
    target, program = tiny_llama(1, 2), Program(recorder=Tape)
    options = {"width": 4, "max_new_tokens": 7, "eos_token_id": eos, "gamma": 2, "draft": noisy_copy(target, 0.1)}
    for seed in range(3):
        ids, mask = random_prompts(2, 9, seed)
        captured = beam_search(target, ids, mask, program=program, **options)
        assert_same_lists(captured, beam_search(target, ids, mask, **options))


def test_relaxed_draws_the_same_when_captured():
    target, trie, program = tiny_llama(1, 2), Trie(random_items(200)), Program(recorder=Tape)
    options = {"trie": trie, "width": 4, "verification": "relaxed", "gamma": 3, "draft": noisy_copy(target, 0.1)}
    for seed in range(3):
        ids, mask = random_prompts(2, 9, seed)
        captured = beam_search(target, ids, mask, program=program, seeds=[seed, 9], **options)
        assert torch.equal(captured.sequences, beam_search(target, ids, mask, seeds=[seed, 9], **options).sequences)


def test_what_cannot_be_captured_is_refused():
    with pytest.raises(ValueError, match="answers of at most 16 tokens"):
        beam_search(tiny_llama(1, 1), torch.tensor([[5, 6]]), width=2, max_new_tokens=17, program=Program())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("search", SEARCHES)
def test_cuda_graphs_give_what_others_give_and_wait_once_a_round(search, monkeypatch):
    step = SearchState.step

    def watched(*arguments):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(SearchState, "step", watched)
    target, trie, program = tiny_llama(1, 2).cuda(), Trie(uneven_items().cuda()), Program()
    options = {"trie": trie, "width": 6, "draft": noisy_copy(target, 0.1)}
    for seed, length in enumerate([9, 11, 9, 40, 5, 6]):
        ids, mask = (each.cuda() for each in random_prompts(3, length, seed))
        captured = beam_search(target, ids, mask, program=program, **options, **SEARCHES[search])
        assert_same_lists(captured, beam_search(target, ids, mask, **options))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@torch.inference_mode()
def test_compiled_models_give_what_others_give():
    target, trie, program = tiny_llama(1, 2), Trie(random_items(200)), Program()
    options = {"trie": trie, "width": 6, "draft": noisy_copy(target, 0.1)}
    for search in (SEARCHES["none"], SEARCHES["hybrid"]):
        for seed, length in enumerate([9, 11, 40]):
            ids, mask = random_prompts(3, length, seed)
            captured = beam_search(target, ids, mask, program=program, **options, **search)
            assert_same_lists(captured, beam_search(target, ids, mask, **options))


def popular_items(n_items=20_000, levels=6):
    """Identifiers whose prefixes are popular to different degrees, so that levels differ in width."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(n_items, levels, generator=generator).pow(3) * 12
    return (codes.long() + 4).unique(dim=0)


@pytest.mark.parametrize("drafter", ["none", "trie", "hybrid"])
@torch.inference_mode()
def test_recordings_and_memory_stay_bounded_over_200_random_requests(drafter):
    """With a grid of widths alone, rather than of what is drafted, there were ever more of them."""
    target, trie = tiny_llama(1, 1), Trie(popular_items())
    program, before = Program(max_bytes=40_000_000, recorder=Tape), Tape.made
    options = {"trie": trie, "width": 10, "drafter": drafter, "draft": noisy_copy(target, 0.1)}
    for seed in range(200):
        ids, mask = random_prompts(1, 5 + seed % 90, seed)
        captured = beam_search(target, ids, mask, program=program, **options)
        if not seed % 20:
            assert_same_lists(captured, beam_search(target, ids, mask, **options))
    assert Tape.made - before <= 3 * {"none": 7, "trie": 20, "hybrid": 20}[drafter], "three prompt sizes"
    assert 0 < program.nbytes <= 40_000_000


def test_what_was_used_least_recently_goes_first_when_the_budget_is_spent(caplog):
    target, trie = tiny_llama(1, 1), Trie(random_items(200))

    def ask(program, length, seed):
        ids, mask = random_prompts(1, length, seed)
        captured = beam_search(target, ids, mask, trie=trie, width=4, program=program)
        assert_same_lists(captured, beam_search(target, ids, mask, trie=trie, width=4))

    one = Program(recorder=Tape)
    ask(one, 20, 0)
    program = Program(max_bytes=2 * one.nbytes, recorder=Tape)
    for seed, length in enumerate([20, 50, 20, 80, 20, 20]):  # 50 makes room for 80
        ask(program, length, seed)
    assert program.recorded == 3 * 5
    ask(program, 50, 7)
    assert program.recorded == 4 * 5
    assert program.nbytes <= 3 * one.nbytes  # the newest may be one too many, until the next request
    small = Program(max_bytes=one.nbytes // 2, recorder=Tape)
    for seed in range(4):
        ask(small, 20, seed)
    assert (small.recorded, small.nbytes) == (5, 0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "such batches run without" in caplog.text


class Fails(Tape):
    """A recorder that fails at the second round it is given."""

    error, calls = CaptureError("aten::nonzero waits for the device"), 0

    def __call__(self, function, undo):
        Fails.calls += 1
        if Fails.calls == 2:
            function()
            undo()
            raise self.error
        return super().__call__(function, undo)


@pytest.mark.parametrize(
    ("error", "message", "recorded"),
    [
        (CaptureError("aten::nonzero waits for the device"), "LlamaForCausalLM cannot be captured, and runs", 1),
        (torch.OutOfMemoryError("CUDA out of memory"), "no memory to capture a batch", 5),
    ],
)
def test_what_cannot_be_captured_runs_without_and_says_so_once(error, message, recorded, caplog, monkeypatch):
    monkeypatch.setattr(Fails, "error", error)
    monkeypatch.setattr(Fails, "calls", 0)
    target, trie, program = tiny_llama(1, 1), Trie(random_items(200)), Program(recorder=Fails)
    for seed in range(3):
        ids, mask = random_prompts(2, 9, seed)
        captured = beam_search(target, ids, mask, trie=trie, width=6, program=program)
        assert_same_lists(captured, beam_search(target, ids, mask, trie=trie, width=6))
    assert [message in record.message for record in caplog.records] == [True]
    assert program.recorded == recorded


def test_a_model_whose_rotary_frequencies_follow_from_the_length_is_not_captured(caplog):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    target, program = tiny_model("llama", rope_parameters=rope), Program(recorder=Tape)
    ids, mask = random_prompts(2, 9)
    options = {"trie": Trie(random_items(200)), "width": 6}
    for _ in range(2):
        assert_same_lists(
            beam_search(target, ids, mask, program=program, **options), beam_search(target, ids, mask, **options)
        )
    assert program.recorded == 0
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "LlamaForCausalLM cannot be captured, and runs without"
    ]


@pytest.mark.parametrize(
    "wait", [lambda x: x.max().item(), torch.nonzero, lambda x: x[x > 0], lambda x: torch.unique(x)]
)
def test_an_operation_that_waits_for_the_device_is_found_before_the_capture(wait):
    with NoHostSyncs(), pytest.raises(CaptureError, match="waits for the device"):
        wait(torch.arange(3))
    with NoHostSyncs():
        torch.arange(3)[torch.tensor([0, 2])].sum()


def test_a_clock_that_nobody_reads_stays_small_and_loses_nothing():
    clock = Clock("cuda" if torch.cuda.is_available() else "cpu")
    for _ in range(3000):
        with clock("draft"):
            pass
    assert len(clock._spans) < 3000
    first = clock.seconds()
    assert first["draft"] > 0
    assert clock.seconds() == first
