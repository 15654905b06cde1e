"""Models to begin a training from: random ones, and a few layers of a model that there is."""

import re
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from atspeed.checkpoints.loading import load_model, load_model_config, load_tokenizer, vocabulary_size, write_tokenizer
from atspeed.checkpoints.shapes import Shape
from genrec.runtime.artefacts import make_facts, write_facts
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path


def init_model(path: Path, shape: Shape, seed: int) -> int:
    """Write a random LLaMA of a shape, with a small tokenizer of its own; returns the number of weights."""
    with atomic_path(path) as partial:
        partial.mkdir(parents=True)
        write_tokenizer(partial)
        tokenizer = AutoTokenizer.from_pretrained(partial)
        model = _random(_llama(shape, tokenizer, shape.vocab_size or len(tokenizer)), seed)
        model.save_pretrained(partial)
        write_facts(partial, make_facts("init_model", {"seed": seed, **vars(shape)}))
    return model.num_parameters()


def init_like(path: Path, like: str, shape: Shape | None, layers: int | None, seed: int) -> int:
    """Write a random model with the tokenizer of the one at `like`, and its number of tokens; returns the number of
    weights.

    shape: of a LLaMA; None for the architecture of `like`. layers: its depth; None for that of the shape, or of `like`.
    """
    config = load_model_config(like)
    if shape:
        config = _llama(shape, load_tokenizer(like), vocabulary_size(like))
    if layers:
        config = _with_layers(config, [number % _depth(config) for number in range(layers)])
    return _save(path, _random(config, seed), like, {"seed": seed, "layers": layers, **(vars(shape) if shape else {})})


def init_from_layers(path: Path, like: str, keep: Sequence[int]) -> int:
    """Write some of the layers of the model at `like`, with all else that it has; returns the number of weights.

    keep: their numbers, from 0. Raises UserError for one that it has not.
    """
    return _save(path, only_layers(load_model(like), keep), like, {"keep_layers": list(keep)})


def only_layers(model: PreTrainedModel, keep: Sequence[int]) -> PreTrainedModel:
    """A copy of a decoder-only model with some of its layers, in the order of `keep`, from 0.

    Raises UserError for a layer that it has not.
    """
    depth = _depth(model.config)
    if not keep or not all(0 <= number < depth for number in keep) or len(set(keep)) < len(keep):
        said = ",".join(map(str, keep))
        raise UserError(f"--keep_layers {said}: name different layers, at least one, from 0 to {depth - 1}")
    decoder = model.get_decoder()
    within = next((n for n, m in decoder.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth), None)
    if within is None:
        raise UserError(f"--keep_layers: the layers of a {model.config.model_type} are in no list of {depth}")
    place = next(name for name, module in model.named_modules() if module is decoder)
    layer = re.compile(rf"({re.escape(f'{place}.{within}.'.lstrip('.'))})(\d+)(\..*)")
    new_number, weights = {old: new for new, old in enumerate(keep)}, {}
    for name, weight in model.state_dict().items():
        if (found := layer.fullmatch(name)) is None:
            weights[name] = weight
        elif int(found[2]) in new_number:
            weights[f"{found[1]}{new_number[int(found[2])]}{found[3]}"] = weight
    small = AutoModelForCausalLM.from_config(_with_layers(model.config, keep), dtype=model.dtype)
    small.load_state_dict(weights)
    return small.eval()


def _llama(shape: Shape, tokenizer: PreTrainedTokenizerBase, size: int) -> LlamaConfig:
    """size: the number of tokens."""
    return LlamaConfig(
        **{**vars(shape), "vocab_size": size}, max_position_embeddings=2048, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip


def _depth(config: PreTrainedConfig) -> int:
    return config.get_text_config().num_hidden_layers


def _with_layers(config: PreTrainedConfig, keep: Sequence[int]) -> PreTrainedConfig:
    """The configuration of a model of the layers `keep`, which may differ in kind."""
    config = deepcopy(config)
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    text.num_hidden_layers = len(keep)
    if kinds:
        text.layer_types = [kinds[number] for number in keep]
    return config


def _random(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _save(path: Path, model: PreTrainedModel, like: str, arguments: dict) -> int:
    with atomic_path(path) as partial:
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        load_tokenizer(like).save_pretrained(partial)
        write_facts(partial, make_facts("init_model", {"like": like, **arguments}))
    return model.num_parameters()
