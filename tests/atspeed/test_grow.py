"""A grown checkpoint computes what the small one did, and stands in its place."""

import re
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

from atspeed.benchmark.growth import grown, plan_growth, save_grown
from atspeed.checkpoints.base_models import init_model
from atspeed.checkpoints.checkpoint import DataSetting, open_checkpoint, save_checkpoint
from atspeed.checkpoints.loading import add_item_tokens, load_model, load_tokenizer
from atspeed.checkpoints.shapes import SHAPES, Shape
from atspeed.commands import grow_model
from atspeed.prompts import encode_prompts, left_pad
from beamsd import Trie, beam_search
from conftest import environment, program, random_items, random_prompts, tiny_model
from genrec.data.dataset import load_dataset
from genrec.data.toy import make_toy
from genrec.runtime.artefacts import fingerprint, make_facts, read_facts
from genrec.runtime.errors import UserError
from genrec.runtime.files import write_json
from genrec.runtime.text import read_json

# The small model: hidden 32, intermediate 64, 2 layers, 4 heads of 8 on 2 key/value heads, with what is named here.
CASES = {
    "the same": ({}, Shape(32, 64, 2, 4, 2, None)),
    "deeper": ({}, Shape(32, 64, 5, 4, 2, None)),
    "more units": ({}, Shape(32, 160, 2, 4, 2, None)),
    "wider, more heads, groups as large": ({}, Shape(80, 64, 2, 10, 5, None)),
    "larger groups": ({}, Shape(96, 64, 2, 12, 3, None)),
    "one query head a group": ({}, Shape(64, 64, 2, 8, 8, None)),
    "groups of 3 split into 2 and 1": (
        {"num_attention_heads": 6, "head_dim": 4, "hidden_size": 24},
        Shape(48, 64, 2, 12, 6, None),
    ),
    "groups from none": ({"num_key_value_heads": 4}, Shape(128, 64, 2, 16, 4, None)),
    "head_dim twice": ({}, Shape(64, 64, 2, 4, 2, None)),
    "head_dim three times, not hidden / heads, other theta": (
        {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
        Shape(192, 96, 3, 4, 4, None),
    ),
    "tied embeddings": ({"tie_word_embeddings": True}, Shape(128, 96, 3, 8, 4, None)),
}


def write_small(folder, **changes):
    """A checkpoint without a tokenizer; norms unlike each other and a large eps, so that each of them matters."""
    small = tiny_model("llama", **({"rms_norm_eps": 0.05} | changes))
    with torch.no_grad():
        for name, weight in small.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    small.save_pretrained(folder)
    write_json(folder / "facts.json", {"stage": "finetune_llama", "arguments": {}})
    return small


def grow(folder, shape, dtype=torch.float32):
    save_grown(folder / "grown", plan_growth(str(folder / "small"), shape), dtype, 0, {"stage": "grow_model"})
    return load_model(str(folder / "grown"), dtype)


@pytest.fixture(params=CASES)
def models(request, tmp_path):
    changes, shape = CASES[request.param]
    return write_small(tmp_path / "small", **changes), grow(tmp_path, shape), shape


@torch.inference_mode()
def logits(model, ids, mask):
    """(tokens, V) float32, of what the mask keeps."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[mask.bool()].float()


def test_logits_and_lists_are_those_of_the_small_model(models):
    small, large, shape = models
    for field, value in asdict(shape).items():
        assert getattr(large.config, field) == (value or small.config.vocab_size)
    assert (large.lm_head.weight is large.model.embed_tokens.weight) == small.config.tie_word_embeddings
    ids, mask = random_prompts(4, 12)
    expected = logits(small, ids, mask)
    torch.testing.assert_close(logits(large, ids, mask), expected, atol=1e-4 * expected.abs().max().item(), rtol=0)
    before, after = (beam_search(m, ids, mask, trie=Trie(random_items(200)), width=5) for m in (small, large))
    assert torch.equal(after.sequences, before.sequences)
    torch.testing.assert_close(after.scores, before.scores, atol=1e-4, rtol=1e-4)


def test_stored_in_bfloat16_all_is_random_but_what_must_be_zero(tmp_path):
    write_small(tmp_path / "small")
    large = grow(tmp_path, Shape(128, 192, 4, 8, 4, None), torch.bfloat16)
    files = sorted((tmp_path / "grown").glob("*.safetensors"))
    stored = {name: weight for file in files for name, weight in load_file(file).items()}
    assert stored.keys() == large.state_dict().keys()
    assert len(files) == 1 + 4, "one a layer"
    # The small head has half of the dimensions, so 4 of 8 heads have half of their queries zero.
    most = {"embed_tokens": 1, "o_proj": 1, "down_proj": 1, "q_proj": 4 / 8 * 1 / 2}
    for name, weight in stored.items():
        assert weight.dtype == torch.bfloat16
        assert (weight == 0).float().mean() <= most.get(name.split(".")[-2], 0), name

    (ids, mask), small = random_prompts(4, 12), str(tmp_path / "small")
    exact, rounded = (logits(load_model(small, dtype), ids, mask) for dtype in (torch.float32, torch.bfloat16))
    assert (logits(large, ids, mask) - exact).abs().mean() < 2 * (rounded - exact).abs().mean(), "more than rounding"


BASE = Shape(64, 64, 2, 4, 2, None)


@pytest.mark.parametrize(
    ("architecture", "changes", "shape", "message"),
    [
        (
            "llama", {"num_key_value_heads": 4}, replace(BASE, num_hidden_layers=1),
            "num_hidden_layers 1 is smaller than the checkpoint's 2; choose from micro, tiny, llama-68m, ",
        ),
        ("llama", {}, replace(BASE, intermediate_size=63), "intermediate_size 63 is smaller"),
        ("llama", {}, replace(BASE, num_key_value_heads=1), "num_key_value_heads 1 is smaller"),
        ("llama", {"head_dim": 10}, BASE, "head_dim 16 is not a multiple of the checkpoint's 10; add one"),
        (
            "llama", {"hidden_size": 48, "num_attention_heads": 6}, Shape(48, 64, 2, 6, 3, None),
            "num_key_value_heads 3 with 2 query heads each cannot hold the checkpoint's 2 with 3 each",
        ),
        ("llama", {"attention_bias": True}, BASE, "a llama with attention_bias cannot be grown"),
        ("llama", {"mlp_bias": True}, BASE, "a llama with mlp_bias cannot be grown"),
        (
            "llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, BASE,
            "rope_type linear",
        ),
        ("qwen3", {}, BASE, "model_type qwen3 cannot be grown"),
    ],
)  # fmt: skip
def test_what_cannot_be_grown_is_refused_by_its_field(tmp_path, architecture, changes, shape, message):
    tiny_model(architecture, **changes).save_pretrained(tmp_path / "small")
    write_json(tmp_path / "small" / "facts.json", {"stage": "train", "arguments": {}})
    with pytest.raises(UserError, match=re.escape(message)):
        plan_growth(str(tmp_path / "small"), shape)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A checkpoint as stage 1 leaves it, and its data set."""
    folder = tmp_path_factory.mktemp("target")
    make_toy(n_items=300, n_users=60).save(folder / "data" / "toy")
    data = load_dataset(str(folder / "data"), "toy")
    init_model(folder / "base", replace(SHAPES["tiny"], num_hidden_layers=2), seed=0)
    model, tokenizer = load_model(str(folder / "base")), load_tokenizer(str(folder / "base"))
    add_item_tokens(model, tokenizer, data.catalogue)
    facts = make_facts("finetune_llama", {"seed": 0}, setting=asdict(DataSetting.of(data, 20, 512)))
    save_checkpoint(folder / "target", model, tokenizer, data, facts)
    return folder / "target", data


def test_the_grown_checkpoint_stands_in_the_targets_place(target, tmp_path):
    path, data = target
    command = [sys.executable, *program("grow_model"), "--shape", "llama-68m", "--model", path]
    subprocess.run([*command, "--output", tmp_path / "grown"], check=True, env=environment(tmp_path))
    before, after = (open_checkpoint(str(p), "finetune_llama", "", data) for p in (path, tmp_path / "grown"))
    assert after.setting == before.setting
    assert after.fingerprint != before.fingerprint
    facts = read_facts(tmp_path / "grown", "finetune_llama", "")
    (step,) = facts.pop("grown")
    assert fingerprint(facts) == before.fingerprint == step["from_fingerprint"]
    assert (step["stage"], step["arguments"]["shape"]) == ("grow_model", "llama-68m")
    assert (step["from_shape"]["hidden_size"], step["to_shape"]["hidden_size"]) == (128, 768)

    samples = data.samples("test", max_history=20)[:4]
    lists = []
    for folder in map(str, (path, tmp_path / "grown")):
        tokenizer = load_tokenizer(folder)
        prompts = encode_prompts(tokenizer, data.catalogue, samples, before.setting.cutoff)
        trie = Trie(data.catalogue.token_ids(tokenizer))
        lists.append(beam_search(load_model(folder), *left_pad(prompts), trie=trie, width=5).sequences)
    assert torch.equal(*lists)
    assert read_json(tmp_path / "grown" / "catalogue.json") == read_json(path / "catalogue.json")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"shape": "llama-13b"}, "--shape llama-13b: choose from micro, tiny, llama-68m"),
        ({"dtype": "int8"}, "--dtype int8: choose from float32"),
        ({"model": "nowhere"}, "nowhere: not there, or not finished; it is written by: bash script/finetune_llama.sh"),
        ({"output": "model"}, "--output model: is --model itself"),
        ({"output": "."}, "is there already; choose another --output, or pass --overwrite"),
    ],
)
def test_the_script_refuses_before_any_work(tmp_path, monkeypatch, flags, message):
    write_small(tmp_path / "model", hidden_size=64, num_key_value_heads=4)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        grow_model.main(**({"model": "model", "output": "grown", "shape": "tiny"} | flags))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("case", ["groups of 3 split into 2 and 1", "tied embeddings"])
def test_grown_in_memory_it_is_what_is_written(case, tmp_path):
    changes, shape = CASES[case]
    small = write_small(tmp_path / "small", **changes)
    written, made = grow(tmp_path, shape), grown(small, shape, torch.float32, torch.device("cpu"))
    sizes = [{name: weight.shape for name, weight in model.state_dict().items()} for model in (written, made)]
    assert sizes[0] == sizes[1]
    ids, mask = random_prompts(4, 12)
    torch.testing.assert_close(logits(made, ids, mask), logits(written, ids, mask), atol=1e-3, rtol=1e-3)
