"""Which models can read a token tree. Others are refused by name, before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import transformers
from torch import Tensor

from beamsd.compat import CACHE_NAMES, DynamicLayer, attention_of, cache_argument, cache_layers, takes
from beamsd.known import Form, Known
from beamsd.reader import Reader
from beamsd.tree import Tree

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_reads_trees: Known[None] = Known(Form)


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


@torch.inference_mode()
def _probe(model: PreTrainedModel) -> None:
    name, attention = type(model).__name__, attention_of(model)
    ids = torch.arange(1, 6, device=model.device) % model.config.get_text_config().vocab_size
    try:
        tree = Tree.trunk(ids[None, :2], torch.ones_like(ids[None, :2]), capacity=6)
        first, second = tree.grow(torch.tensor([[1, 1]], device=ids.device), ids[None, 2:4]).unbind(1)
        tree.grow(torch.stack([second, first], 1), ids[None, [4, 0]])
        got = Reader(model, 6, longest=4).catch_up(tree, since=4).logits(torch.tensor([[4, 5]], device=ids.device))[0]
        paths = torch.stack([ids[[0, 1, 3, 4]], ids[[0, 1, 2, 0]]])
        expected = model(input_ids=paths, use_cache=False).logits[:, -1].float()
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError, IndexError) as error:
        raise ValueError(f"{name} with {attention} attention cannot read a token tree: {error}") from error
    exact = model.dtype in (torch.float32, torch.float64)
    if not _close(got, expected, 1e-3 if exact else 0.1):
        raise ValueError(
            f"{name} with {attention} attention does not follow the attention mask and positions of a token tree; "
            "load it with attn_implementation='sdpa' or 'eager', if it was not"
        )


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool(((a - b).abs().amax() <= tolerance * b.abs().amax()).item())
