"""What users of BeamSD's release have written, its notebook first, runs as it stands."""

import pytest
import torch

from conftest import noisy_copy, random_prompts, tiny_llama

max_new_tokens, beam_size, draft_beam_size, gamma = 7, 5, 9, 2


@pytest.fixture
def target_model():
    model = tiny_llama(1, 2)
    model.generation_config.update(
        max_new_tokens=max_new_tokens, num_beams=beam_size, num_return_sequences=beam_size, return_dict_in_generate=True
    )
    return model


@pytest.fixture
def draft_model(target_model):
    model = noisy_copy(target_model, 0.05)
    model.generation_config.update(
        max_new_tokens=gamma, num_beams=draft_beam_size, num_return_sequences=draft_beam_size,
        return_dict_in_generate=True,
    )  # fmt: skip
    return model


def prompts(B=1):
    ids, mask = random_prompts(B, 6)
    return {"input_ids": ids, "attention_mask": mask}


def test_the_notebook_runs_and_its_lists_are_those_of_generate(target_model, draft_model):
    from atspeed.beamsd4timing import Timer, beam_search_by_SD_4timing
    from atspeed.beamsd_replace import replace_beam_search_with_TreeAttn

    inputs = prompts()
    with Timer() as timer_TF:
        outputs = target_model.generate(**inputs)
    assert timer_TF.time_cost > 0
    expected = outputs["sequences"]

    model = target_model
    replace_beam_search_with_TreeAttn(model)
    with Timer() as timer_TreeAttn:
        outputs = model.generate(**inputs)
    assert timer_TreeAttn.time_cost > 0
    assert torch.equal(outputs["sequences"], expected)

    outputs = beam_search_by_SD_4timing(target_model, draft_model, inputs)
    assert f"{outputs['time_cost']:.2f} s, accepted_steps: {outputs['total_accept_steps']}"
    parts = [outputs[f"{part}_time_cost"] for part in ("target", "draft", "verify")]
    assert min(parts) > 0
    assert sum(parts) <= outputs["time_cost"]
    assert outputs["total_accept_steps"] == int(outputs.accepted.clamp(min=0).sum()) > 0
    assert outputs["total_accept_tokens"] == beam_size * outputs["total_accept_steps"]
    assert outputs["n_run"] == int(outputs.target_calls.sum())
    assert outputs["ave_accept_tokens"] == outputs["total_accept_tokens"] / outputs["n_run"]
    assert torch.equal(outputs["beam_sequences"], expected)


def test_arguments_stand_where_they_stood(target_model, draft_model):
    """All beams come back, and sizes given take the place of those in the generation configs."""
    from atspeed.beamsd import beam_search_by_SD, beam_search_by_TreeAttn

    inputs = prompts(2)
    expected = target_model.generate(
        **inputs, max_new_tokens=5, num_beams=3, num_return_sequences=3, output_scores=True
    )
    by_sd = beam_search_by_SD(target_model, draft_model, inputs, 5, 1, 3, 4)
    assert by_sd.accepted.max() == 1, "gamma is 1"
    by_tree = beam_search_by_TreeAttn(target_model, inputs, 5, 3)
    for outputs in (by_sd, by_tree):
        assert torch.equal(outputs["beam_sequences"], expected.sequences)
        assert torch.allclose(outputs["beam_scores"], 5 * expected.sequences_scores, atol=1e-5), "a sum over 5 tokens"
        assert "time_cost" not in outputs

    target_model.generation_config.num_return_sequences = None  # BeamSD never read it
    allowed = lambda batch, ids: [1, 2, 3]  # noqa: E731, as in a notebook
    expected = target_model.generate(**inputs, num_return_sequences=beam_size, prefix_allowed_tokens_fn=allowed)
    outputs = beam_search_by_SD(target_model, draft_model, inputs, prefix_allowed_tokens_fn=allowed)
    assert torch.equal(outputs["beam_sequences"], expected.sequences)


def test_a_timer_over_a_function_adds_its_seconds():
    from atspeed.beamsd4timing import Timer

    @Timer()
    def answer(value):
        return {"value": value}

    assert answer(1)["value"] == 1
    assert answer(1)["time_cost"] >= 0
