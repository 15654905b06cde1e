"""Models to begin from: some layers of another, and random ones with its tokenizer."""

from copy import deepcopy

import pytest
import torch
from transformers import AutoConfig

from atspeed.checkpoints.base_models import init_model, only_layers
from atspeed.checkpoints.loading import check_same_vocabulary, load_model, load_tokenizer
from atspeed.checkpoints.shapes import SHAPES
from atspeed.commands import init_model as command
from conftest import ARCHITECTURES, random_prompts, tiny_model
from genrec.data.catalogue import Catalogue
from genrec.runtime.errors import UserError

ONE_ITEM = Catalogue({0: ("<a_0>",)})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "base"
    init_model(folder, SHAPES["tiny"], seed=0)
    return str(folder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_some_layers_compute_what_the_model_does_without_the_others(architecture):
    depth = "n_layer" if architecture == "gpt2" else "num_hidden_layers"
    model = tiny_model(architecture, **{depth: 3})
    ids, _ = random_prompts(2, 9)
    without = deepcopy(model)
    layers = next(m for m in without.get_decoder().modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)
    del layers[1]
    without.config.num_hidden_layers = 2
    with torch.no_grad():
        for keep, reference in (((0, 1, 2), model), ((0, 2), without)):
            kept = only_layers(model, keep)
            assert kept.config.num_hidden_layers == len(keep)
            torch.testing.assert_close(kept(ids, use_cache=False).logits, reference(ids, use_cache=False).logits)


def test_layers_of_different_kinds_stay_what_they_are():
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    model = tiny_model("qwen2", num_hidden_layers=3, layer_types=kinds, use_sliding_window=True, sliding_window=4)
    assert only_layers(model, (1, 2)).config.layer_types == kinds[1:]
    assert model.config.layer_types == kinds


@pytest.mark.parametrize("keep", [(), (0, 0), (0, 4)])
def test_layers_that_are_not_there_are_refused(base, keep):
    with pytest.raises(UserError, match=r"--keep_layers .*: name different layers, at least one, from 0 to 3"):
        only_layers(load_model(base), keep)


@pytest.mark.parametrize(
    ("flags", "layers", "width"),
    [
        (dict(keep_layers=(0, 3)), 2, 128),
        (dict(layers=6), 6, 128),
        (dict(shape="micro", layers=1), 1, 64),
    ],
)
def test_a_model_like_another_has_its_tokenizer_and_can_be_its_draft(base, tmp_path, flags, layers, width, capsys):
    command.main(output=str(tmp_path / "new"), like=base, **flags)
    config = AutoConfig.from_pretrained(tmp_path / "new")
    assert (config.num_hidden_layers, config.hidden_size) == (layers, width)
    target = load_tokenizer(base)
    target.add_tokens(ONE_ITEM.tokens)
    check_same_vocabulary(str(tmp_path / "new"), target, ONE_ITEM)
    made, like = load_model(str(tmp_path / "new")), load_model(base)
    same = torch.equal(made.get_input_embeddings().weight, like.get_input_embeddings().weight)
    assert same == ("keep_layers" in flags)
    assert f"{made.num_parameters() / 1e6:.1f} M weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (dict(keep_layers=(0,)), "--keep_layers needs --like"),
        (dict(keep_layers=(0,), shape="tiny"), "no --shape"),
        (dict(keep_layers=(9,)), "from 0 to 3"),
        (dict(like="/nowhere/at/all"), "/nowhere/at/all"),
    ],
)
def test_what_cannot_be_made_is_refused_and_leaves_nothing(base, tmp_path, flags, message):
    like = {} if message == "--keep_layers needs --like" else {"like": base}
    with pytest.raises(UserError, match=message):
        command.main(output=str(tmp_path / "new"), **(like | flags))
    assert not (tmp_path / "new").exists()
