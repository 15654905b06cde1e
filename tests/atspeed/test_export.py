"""A folder for the Hub: whoever has it recommends as its target does, with transformers too."""

import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from transformers import AutoModelForCausalLM

from atspeed import Recommender
from atspeed.checkpoints.checkpoint import DataSetting, save_checkpoint
from atspeed.checkpoints.loading import load_model, load_tokenizer
from conftest import environment, noisy_copy
from genrec.data.dataset import load_dataset
from genrec.runtime.artefacts import make_facts


@pytest.fixture(scope="module")
def world(tmp_path_factory, save_random_target):
    folder = tmp_path_factory.mktemp("export")
    target, data = str(save_random_target(folder)), load_dataset(str(folder / "data"), "toy")
    facts = make_facts("train", {"model_class": "SFTModel"}, setting=asdict(DataSetting.of(data, 20, 512)))
    draft = noisy_copy(load_model(target), 0.02)
    save_checkpoint(folder / "draft", draft, load_tokenizer(target), data, facts)
    (folder / "results").mkdir()
    (folder / "results/results.md").write_text("| method | ms |\n|---|---|\n")
    export(folder, "--draft_model", folder / "draft", "--license", "mit", "--results", folder / "results")
    return folder


def export(folder, *flags, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "atspeed", "export", "--target_model", folder / "target", "--output", folder / "hub",
         *flags], capture_output=True, text=True, env=environment(folder, HF_HUB_OFFLINE="1"), check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_folder_recommends_as_its_target_and_draft_do(world):
    histories = [[3], [5, 7, 9], [11, 40]]
    expected = Recommender.from_pretrained(world / "target").recommend(histories, k=5)
    found = Recommender.from_pretrained(world / "hub", draft=world / "hub/draft").recommend(histories, k=5)
    assert [each.items for each in found] == [each.items for each in expected]


@pytest.mark.parametrize("drafts", [True, False])
def test_generate_decodes_by_the_method_of_the_folder(world, tmp_path, drafts):
    hub = world / "hub"
    if not drafts:
        export(world, "--output", tmp_path / "alone")
        hub = tmp_path / "alone"
    model = AutoModelForCausalLM.from_pretrained(hub).eval()
    recommender = Recommender.from_pretrained(world / "target")
    paths = {tuple(path) for path in recommender._encoder.identifiers.values()}
    prompt = torch.tensor([recommender._encoder.encode([3, 7])])
    inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    given = {"num_beams": 5, "num_return_sequences": 5, "return_dict_in_generate": True, "output_scores": True}

    def allowed(_, sent):
        said = tuple(sent[prompt.shape[1] :].tolist())
        return sorted({path[len(said)] for path in paths if path[: len(said)] == said}) or [0]

    expected = model.generate(
        **inputs, **given, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0,
        prefix_allowed_tokens_fn=allowed,
    )  # fmt: skip
    for _ in range(2):
        found = model.generate(
            **inputs, **given, eos_token_id=None, pad_token_id=0, custom_generate=str(hub), trust_remote_code=True
        )
        assert torch.equal(found.sequences, expected.sequences)
        torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=1e-4)
        assert found.target_calls <= 4


def test_the_card_says_what_is_known(world):
    card = (world / "hub/README.md").read_text()
    for said in (
        'license: "mit"',
        "custom_generate",
        "300 items",
        "| method | ms |",
        "| seed | 1 |",
        "SFTModel",
        "torch ",
    ):
        assert said in card
    export(world, "--overwrite")
    card = (world / "hub/README.md").read_text()
    assert 'license: "other"' in card
    assert "Not stated by who exported it" in card
    assert not (world / "hub/draft").exists()
    export(world, "--overwrite", "--draft_model", world / "draft")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "hub: is there already; choose another --output, or pass --overwrite"),
        (("--draft_model", "{world}/target"), "was written by finetune_llama, but the output of train is needed"),
        (("--results", "{world}/data"), "has 0 tables"),
        (("--overwrite", "--push", "mine"), "--push mine: give the repository as OWNER/NAME"),
        (("--overwrite", "--push", "me/mine", "--draft_model", "{world}/draft"), "to push it later: hf upload me/mine"),
    ],
)
def test_what_cannot_be_exported_or_pushed_is_refused_in_one_line(world, flags, said):
    assert said in export(world, *(flag.format(world=world) for flag in flags), code=2)
    assert (world / "hub/model.safetensors").is_file()
