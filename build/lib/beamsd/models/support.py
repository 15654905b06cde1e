"""Which models can read a token tree. Others are refused by name, before any work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import transformers
from torch import nn

from beamsd.compat import CACHE_NAMES, DynamicLayer, attention_of, cache_argument, cache_layers, takes
from beamsd.models.model_state import ModelForm, PerModel, parts
from beamsd.models.numerics import PrecisionWatch, is_close
from beamsd.models.reader import Reader
from beamsd.tree import Tree

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_reads_trees: PerModel[None] = PerModel(ModelForm)
# What tables of positions are called.
TABLES = ("position", "pos_encoding", "wpe")
CUTS_TYPES = ("big_bird",)
_positions: PerModel[int | None] = PerModel(ModelForm)


def check_model(model: PreTrainedModel, tokens: int = 0) -> None:
    """Raises ValueError, naming the model and the reason, if it cannot decode `tokens` (prompt and answer) on a tree.

    The first time a model is seen, it reads a tree of six nodes, which must give what its paths give one by one: a
    model that ignores the attention mask or the positions would otherwise decode nonsense, quickly.
    """
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder; the token tree is for decoder-only models")
    layers = cache_layers(model.config)
    if not all(isinstance(layer, DynamicLayer) for layer in layers):
        raise ValueError(f"{name} keeps a state in place of keys and values, which cannot branch into a tree")
    if cache_argument(model) is None:
        raise ValueError(
            f"{name}.forward takes no cache by a name that is known here ({', '.join(CACHE_NAMES)}), with transformers "
            f"{transformers.__version__}; use the releases that this project was tested with: "
            "pip install -c constraints.txt transformers"
        )
    if "flash" in (attention_of(model) or ""):  # not tried: on a GPU its kernel fails in a way that ends the process
        raise ValueError(
            f"{name} has {attention_of(model)} attention, which takes no mask of a token tree; load it with "
            "attn_implementation='sdpa', which uses flash kernels wherever no mask is needed"
        )
    if "position_ids" not in takes(model):
        raise ValueError(f"{name} takes no position_ids, so that it cannot place the nodes of a tree")
    if "local" in (getattr(model.config, "attention_layers", None) or []):  # GPT-Neo, which no cache layer tells
        raise ValueError(f"{name} has local attention over places in its cache, which are not positions in a tree")
    windows = [layer.sliding_window for layer in layers if layer.is_sliding]
    if windows and min(windows) < tokens:
        raise ValueError(
            f"{name} uses sliding-window attention over {min(windows)} tokens, fewer than the {tokens} of prompt and "
            "answer; a token tree needs them all in the window"
        )
    _reads_trees(model, _probe)


def check_length(model: PreTrainedModel, prompt: int, answer: int, at_once: int) -> None:
    """Raises ValueError if a model has too few positions for the tokens of the longest prompt and of the answer, or
    cannot read so many nodes `at_once`."""
    name, most, needed = type(model).__name__, positions_of(model), _read(prompt, answer)
    if most is not None and needed > most:
        raise ValueError(
            f"{name} has {most} positions, a prompt of {prompt} tokens and an answer of {answer} take {needed}; "
            "shorten the prompt or max_new_tokens, or take a model with more positions"
        )
    embeddings = getattr(parts(model)[1], "embeddings", None)
    types = getattr(embeddings, "token_type_ids", None)  # BigBird cuts it to the tokens of a forward
    if model.config.model_type in CUTS_TYPES and types is not None and at_once > types.shape[-1]:
        raise ValueError(
            f"{name} reads at most {types.shape[-1]} tokens at a time, and prompt and drafted nodes may be {at_once}; "
            "draft less (nodes, draft_width, gamma), or nothing (drafter='none')"
        )


def check_rotation(model: PreTrainedModel, prompt: int, answer: int) -> None:
    """Raises ValueError if the rotary frequencies of a target would change between the first token read and the last:
    a tree reads tokens together, all with the frequencies of the longest path."""
    name, needed = type(model).__name__, _read(prompt, answer)
    for kind, limit in _changing_rotations(model.config.get_text_config()):
        if kind == "longrope" and prompt <= limit < needed:
            raise ValueError(
                f"{name} has rotary frequencies (longrope) that change after {limit} tokens, between the prompt of "
                f"{prompt} and the end of its answer of {answer}; a token tree takes both on one side of that"
            )
        if kind == "dynamic" and limit <= needed:
            raise ValueError(
                f"{name} has rotary frequencies (dynamic NTK) that change with every token from {limit} on, and a "
                f"prompt of {prompt} and an answer of {answer} take {needed}; a token tree takes fewer than {limit}"
            )


def is_long(model: PreTrainedModel, prompt: int) -> bool:
    """Whether rotary frequencies are others than those of a short text, such as a `Prefix` alone."""
    return any(limit < prompt for _, limit in _changing_rotations(model.config.get_text_config()))


def changes_rotation(model: PreTrainedModel) -> bool:
    """Whether rotary frequencies follow from the length of what is read."""
    return any(True for _ in _changing_rotations(model.config.get_text_config()))


def _read(prompt: int, answer: int) -> int:
    return prompt + answer - 1  # the last token is never read


def _changing_rotations(config: PreTrainedConfig) -> Iterator[tuple[str, int]]:
    """The kinds of rotary frequencies that change with the length, and the tokens up to which they do not."""
    given = getattr(config, "rope_parameters", None) or {}  # of all layers, or of each type of layer
    for rope in (given, *(each for each in given.values() if isinstance(each, dict))):
        kind = rope.get("rope_type") or "default"
        if kind == "longrope":
            yield kind, rope.get("original_max_position_embeddings") or config.max_position_embeddings
        elif "dynamic" in kind:
            yield "dynamic", config.max_position_embeddings


def positions_of(model: PreTrainedModel) -> int | None:
    """How many positions a model has a table of, learnt or not; None if it has none, as with rotary positions."""
    return _positions(model, _tables)


def _tables(model: PreTrainedModel) -> int | None:
    sizes = []
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and any(word in name for word in TABLES):
            first = module.padding_idx + 1 if module.padding_idx is not None else getattr(module, "offset", 0)
            sizes.append(module.num_embeddings - first)
        sizes += [
            len(table) for name, table in module.named_buffers(recurse=False)
            if any(word in name for word in TABLES) and table.dim() == 2 and table.is_floating_point()
        ]  # fmt: skip
    return min(sizes, default=None)


@torch.inference_mode()
def _probe(model: PreTrainedModel) -> None:
    name, attention = type(model).__name__, attention_of(model)
    ids = torch.arange(1, 6, device=model.device) % model.config.get_text_config().vocab_size
    try:
        in_parts, at_once = (Reader(model, 6, longest=4) for _ in range(2))
        tree = Tree.trunk(ids[None, :2], None, capacity=6)
        in_parts.catch_up(tree, since=1)  # without a mask
        first, second = tree.append(torch.tensor([[1, 1]], device=ids.device), ids[None, 2:4]).unbind(1)
        tree.append(torch.stack([second, first], 1), ids[None, [4, 0]])
        nodes, paths = torch.tensor([[4, 5]], device=ids.device), torch.stack([ids[[0, 1, 3, 4]], ids[[0, 1, 2, 0]]])
        with PrecisionWatch(model) as watch:
            got = [reader.catch_up(tree, since=4).logits(nodes)[0] for reader in (in_parts, at_once)]
            expected = model(input_ids=paths, use_cache=False).logits[:, -1].float()
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError) as error:
        raise ValueError(f"{name} with {attention} attention cannot read a token tree: {error}") from error
    if not all(is_close(each, expected, watch.seen) for each in got):
        if model.training:
            raise ValueError(f"{name} is in training mode, where forwards may differ by chance: call model.eval()")
        raise ValueError(
            f"{name} with {attention} attention does not follow the attention mask and positions of a token tree; "
            "load it with attn_implementation='sdpa' or 'eager', if it was not"
        )
