"""Function-preserving growth of a trained LLaMA: the cost of a 7B with the behaviour of a small model.

The small model's weights lie in a corner of the large one's. New channels of the residual stream hold zero, and what
new heads, units and layers say is multiplied by zero. What then cannot matter is random, so that only the rest of the
embedding, `o_proj` and `down_proj` is zero, a third of a 7B, and some rows of `q_proj`. A dense product reads and
multiplies a zero like any other number; but a GPU that flips fewer bits draws less power, and may clock higher.
"""

import shutil
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from atspeed.checkpoints.loading import load_model, load_model_config
from atspeed.checkpoints.shapes import SHAPES, Shape
from genrec.runtime.artefacts import fingerprint, read_facts, write_facts
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path, write_json
from genrec.runtime.progress import progress_bar

GROWS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
SPREAD = 0.02  # standard deviation of the weights that do not matter, LLaMA's at the start of its training


@dataclass(frozen=True)
class Growth:
    """A checkpoint and the configuration that it can be grown to, checked; no weight is loaded yet."""

    path: str
    facts: dict
    small: LlamaConfig
    large: LlamaConfig

    def describe(self) -> dict:
        """What the facts say of it: from which checkpoint, from which shape to which."""
        said = (*GROWS, "head_dim", "vocab_size")
        before, after = ({field: getattr(config, field) for field in said} for config in (self.small, self.large))
        return {"from_fingerprint": fingerprint(self.facts), "from_shape": before, "to_shape": after}


@dataclass(frozen=True)
class Part:
    """The recipe of one weight: the small one's times `scale` at `index`; the rest has this mean and spread."""

    index: tuple[Tensor | EllipsisType, ...]  # of the large weight, in the shape of the small one
    spread: float = 0.0
    mean: float = 0.0
    scale: float = 1.0
    source: Tensor | EllipsisType = ...  # rows of the small weight; some may be taken twice
    silent: Tensor | None = None  # rows of the large weight that are zero


def plan_growth(path: str, shape: Shape) -> Growth:
    """How the checkpoint at `path`, a target's or a draft's, gets this shape. Its vocabulary and its tying stay: the
    tokens are part of the function, and tied embeddings cost the same products.

    Raises UserError if there is no checkpoint, or it is one that cannot be grown to this shape without change.
    """
    facts, small = read_facts(Path(path), ("finetune_llama", "train"), "finetune_llama"), load_model_config(path)
    _check_kind(path, small)
    if obstacle := _obstacle(small, shape):
        fit = ", ".join(name for name, other in SHAPES.items() if not _obstacle(small, other))
        advice = (
            f"choose from {fit}" if fit else "add one that holds it to SHAPES in code/atspeed/checkpoints/shapes.py"
        )
        raise UserError(f"--shape: {obstacle}; {advice}")
    return Growth(path, facts, small, _enlarged(small, shape))


@torch.no_grad()
def grown(
    small: LlamaForCausalLM, shape: Shape, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> LlamaForCausalLM:
    """A LLaMA of this shape in memory, in eval mode, with the behaviour of the small one, as `save_grown` writes it."""
    with torch.device(device):
        large = LlamaForCausalLM._from_config(_enlarged(small.config, shape), dtype=dtype)
    old, parts = small.state_dict(), _parts(small.config, large.config)
    generator = torch.Generator(device).manual_seed(seed)
    for name, weight in large.named_parameters():  # tied ones once
        weight.copy_(_grow(old.get(name), weight.shape, parts[name.split(".")[-2]], dtype, generator))
    return large.eval()


def _enlarged(small: LlamaConfig, shape: Shape) -> LlamaConfig:
    large = deepcopy(small)
    large.update({field: getattr(shape, field) for field in GROWS})
    large.head_dim = shape.hidden_size // shape.num_attention_heads
    # The mean of squares is over the width, and zeros dilute it; _parts scales the weights of the norms to match.
    large.rms_norm_eps = small.rms_norm_eps * small.hidden_size / large.hidden_size
    return large


def _check_kind(path: str, config: LlamaConfig) -> None:
    if config.model_type != "llama":
        raise UserError(f"{path}: model_type {config.model_type} cannot be grown; give a checkpoint of a llama")
    for field in ("attention_bias", "mlp_bias", "quantization_config"):
        if getattr(config, field, None):
            raise UserError(f"{path}: a llama with {field} cannot be grown; give a checkpoint without it")
    if (rope := config.rope_parameters["rope_type"]) != "default":
        raise UserError(f"{path}: rope_type {rope} scales positions and cannot be grown; give one that is 'default'")


def _obstacle(small: LlamaConfig, shape: Shape) -> str | None:
    """The reason why a model of this configuration does not fit into `shape`; None if it does."""
    for field in GROWS:
        if getattr(shape, field) < getattr(small, field):
            return f"{field} {getattr(shape, field)} is smaller than the checkpoint's {getattr(small, field)}"
    if (head_dim := shape.hidden_size // shape.num_attention_heads) % small.head_dim:
        return f"head_dim {head_dim} is not a multiple of the checkpoint's {small.head_dim}"
    if small.num_key_value_heads * _copies(small, shape) > shape.num_key_value_heads:
        return (
            f"num_key_value_heads {shape.num_key_value_heads} with {_group(shape)} query heads each cannot hold the "
            f"checkpoint's {small.num_key_value_heads} with {_group(small)} each"
        )
    return None


def _group(shape: Shape | LlamaConfig) -> int:
    """Query heads that share a key/value head."""
    return shape.num_attention_heads // shape.num_key_value_heads


def _copies(small: LlamaConfig, large: Shape | LlamaConfig) -> int:
    """How often each key/value head is there, so that all its query heads find one where fewer may share it."""
    return -(-_group(small) // _group(large))


def _parts(small: LlamaConfig, large: LlamaConfig) -> dict[str, Part]:
    """By the name of the module that holds the weight."""
    channels, units = torch.arange(small.hidden_size), torch.arange(small.intermediate_size)
    copies, heads, groups = _copies(small, large), torch.arange(small.num_attention_heads), small.num_key_value_heads
    # Query head h reads key/value head h // _group, whose copies stand side by side.
    group, member = heads // _group(small), heads % _group(small)
    heads = (group * copies + member // _group(large)) * _group(large) + member % _group(large)  # (H,)
    # A head's pair (i, i + d/2) turns by theta^(-2i/d): the frequency of the larger head's pair m·i, where m = d'/d.
    half = torch.arange(small.head_dim // 2) * (large.head_dim // small.head_dim)
    within = torch.cat([half, half + large.head_dim // 2])  # (d,)
    queries = (heads[:, None] * large.head_dim + within).flatten()  # (H·d,)
    keys = (torch.arange(groups * copies)[:, None] * large.head_dim + within).flatten()  # (G·copies·d,)
    source = torch.arange(groups * small.head_dim).view(groups, -1).repeat_interleave(copies, 0).flatten()
    # In what a small head lacks its queries are zero, and random keys add nothing to their product.
    lacks = torch.ones(large.head_dim, dtype=torch.bool).index_fill(0, within, False).nonzero().flatten()  # (d' - d,)
    silent = (heads[:, None] * large.head_dim + lacks).flatten()
    softmax = (large.head_dim / small.head_dim) ** 0.5  # attention divides by the root of the larger head_dim
    norm = Part((channels,), mean=1.0, scale=(small.hidden_size / large.hidden_size) ** 0.5)
    key = Part((keys[:, None], channels), SPREAD, source=source)
    return {
        "embed_tokens": Part((..., channels)),
        "input_layernorm": norm,
        "q_proj": Part((queries[:, None], channels), SPREAD, scale=softmax, silent=silent),
        "k_proj": key,
        "v_proj": key,
        "o_proj": Part((channels[:, None], queries)),
        "post_attention_layernorm": norm,
        "gate_proj": Part((units[:, None], channels), SPREAD),
        "up_proj": Part((units[:, None], channels), SPREAD),
        "down_proj": Part((channels[:, None], units)),
        "norm": norm,
        "lm_head": Part((..., channels), SPREAD),
    }


def _grow(old: Tensor | None, size: torch.Size, part: Part, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """One weight of the large model, where the generator is. old: the small model's; None in a layer that it lacks."""
    new = torch.full(size, part.mean, dtype=dtype, device=generator.device)
    if part.spread:
        new.normal_(part.mean, part.spread, generator=generator)
    if old is None:
        return new
    if part.silent is not None:
        new[part.silent] = 0
    new[part.index] = (old[part.source] * part.scale).to(new)
    return new


def save_grown(path: Path, growth: Growth, dtype: torch.dtype, seed: int, step: dict) -> int:
    """Write the grown checkpoint, whole or not at all; returns the number of its weights.

    It keeps the facts of the one that it was grown from. Added is "grown", a list with the facts of this `step` at its
    end, so that the fingerprint is another. Memory holds the small model in float32 and one layer of the large one.
    """
    with atomic_path(path) as partial:
        partial.mkdir()
        for file in Path(growth.path).iterdir():  # tokenizer, identifiers, generation config
            if file.is_file() and ".safetensors" not in file.suffixes:
                shutil.copy(file, partial)
        growth.large.dtype = dtype
        growth.large.save_pretrained(partial)
        weights = _save_weights(partial, growth, dtype, seed)
        write_facts(partial, {**growth.facts, "grown": [*growth.facts.get("grown", []), step]})
    return weights


def _save_weights(folder: Path, growth: Growth, dtype: torch.dtype, seed: int) -> int:
    """A file a layer, and one for what is in no layer, as transformers reads them."""
    with torch.device("meta"):
        sizes = {name: weight.shape for name, weight in LlamaForCausalLM(growth.large).state_dict().items()}
    if growth.large.tie_word_embeddings:
        del sizes["lm_head.weight"]
    files: dict[str, list[str]] = {}
    for name in sizes:
        files.setdefault(name.split(".")[2] if ".layers." in name else "", []).append(name)
    old, parts = load_model(growth.path).state_dict(), _parts(growth.small, growth.large)
    generator = torch.Generator().manual_seed(seed)
    where: dict[str, str] = {}
    for number, names in enumerate(progress_bar(files.values(), "grow", "file")):
        file = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        made = (_grow(old.get(name), sizes[name], parts[name.split(".")[-2]], dtype, generator) for name in names)
        save_file(dict(zip(names, made, strict=True)), folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    weights = sum(size.numel() for size in sizes.values())
    total = {"total_parameters": weights, "total_size": weights * dtype.itemsize}
    write_json(folder / "model.safetensors.index.json", {"metadata": total, "weight_map": where})
    return weights
