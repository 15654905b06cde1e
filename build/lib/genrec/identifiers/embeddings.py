"""Encoding of item texts as vectors, with any Hugging Face encoder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path, write_json
from genrec.runtime.pretrained import load_pretrained
from genrec.runtime.progress import progress_bar
from genrec.runtime.text import read_json

PART = 512  # texts per part file: what an interruption costs at most
POOLINGS = ("mean", "cls")
ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh, "ReLU": nn.ReLU, "GELU": nn.GELU}
ELSE = "encode with sentence-transformers yourself and pass --embeddings"


@dataclass(frozen=True)
class Encoder:
    """A text encoder: a transformer, pooling of its last hidden states, and the head of a sentence-transformer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pooling: str  # mean of the text's tokens, or cls, the first token
    head: nn.Sequential  # (n, d) -> (n, d'): dense layers and normalisation; usually empty
    max_tokens: int  # longer texts are truncated

    @classmethod
    def load(
        cls,
        path: str,
        *,
        max_tokens: int = 512,
        dtype: torch.dtype | str = "float32",
        device: torch.device | str = "cpu",
    ) -> "Encoder":
        """Loads the encoder at `path`: encoder-only, the encoder of an encoder-decoder, or decoder-only.

        Pooling and head follow the `modules.json` of sentence-transformers; without one, the mean is taken.
        Raises UserError if there is no model, its weights are incomplete, or a module is not supported.
        """
        inner, pooling, head = _modules(Path(path))
        try:
            config = AutoConfig.from_pretrained(inner)
            tokenizer = AutoTokenizer.from_pretrained(inner)
            there = "cpu" if config.is_encoder_decoder else device  # of which a half is dropped
            model = load_pretrained(AutoModel, inner, _unused(config), there, dtype=dtype)
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise UserError(f"--encoder {path}: no Hugging Face encoder with its tokenizer there ({first})") from error
        if config.is_encoder_decoder:
            model = model.get_encoder()
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        tokenizer.padding_side = "right"
        most = getattr(config, "max_position_embeddings", None) or max_tokens
        most = min(max_tokens, tokenizer.model_max_length, most)
        return cls(model.to(device), tokenizer, pooling, nn.Sequential(*head).to(device).eval(), most)

    @torch.inference_mode()
    def encode(self, texts: list[str], batch_size: int, bar: tqdm) -> np.ndarray:
        """Encodes texts as (n, d') float32; texts of similar length share a batch, which affects only the time."""
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
        found = [None] * len(texts)
        for start in range(0, len(texts), batch_size):
            rows = order[start : start + batch_size]
            inputs = self.tokenizer(
                [texts[i] for i in rows], padding=True, truncation=True, max_length=self.max_tokens,
                return_tensors="pt", return_token_type_ids=False,
            ).to(self.model.device)  # fmt: skip
            states = self.model(**inputs).last_hidden_state
            vectors = self._pool(states.float(), inputs["attention_mask"]).cpu().numpy()
            for row, vector in zip(rows, vectors, strict=True):
                found[row] = vector
            bar.update(len(rows))
        return np.stack(found)

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """Pools states (B, P, d) with mask (B, P) and applies the head, giving (B, d')."""
        weights = mask.float()[..., None]
        mean = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
        return self.head(mean if self.pooling == "mean" else states[:, 0])


class Normalize(nn.Module):
    """Scales vectors (n, d) to length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        return normalize(vectors, dim=-1)


def _unused(config: PreTrainedConfig) -> tuple[str, ...]:
    """Returns the prefixes of weights that do not affect the last hidden states of an encoder."""
    return ("pooler.", "decoder.") if config.is_encoder_decoder else ("pooler.",)


def _modules(path: Path) -> tuple[str, str, list[nn.Module]]:
    """Returns the folder of the transformer, its pooling, and the modules that follow."""
    listed, inner, pooling, head = path / "modules.json", str(path), "mean", []
    if not listed.is_file():
        return inner, pooling, head
    for module in read_json(listed):
        kind, folder = module["type"].rpartition(".")[2], path / module["path"]
        if kind == "Transformer":
            inner = str(folder)
        elif kind == "Normalize":
            head.append(Normalize())
        elif kind == "Dense":
            head.append(_dense(folder))
        elif kind == "Pooling":
            pooling = _pooling(folder / "config.json")
        else:
            raise UserError(f"--encoder {path}: its module {kind} is not supported, only Transformer, Pooling, Dense "
                            f"and Normalize; {ELSE}")  # fmt: skip
    return inner, pooling, head


def _dense(folder: Path) -> nn.Sequential:
    """Loads a linear layer and its activation."""
    settings = read_json(folder / "config.json")
    activation = settings.get("activation_function", "Tanh").rpartition(".")[2]
    if activation not in ACTIVATIONS:
        raise UserError(f"{folder}: activation {activation} is not supported, only {', '.join(ACTIVATIONS)}; {ELSE}")
    layer = nn.Linear(settings["in_features"], settings["out_features"], settings.get("bias", True))
    safe, older = folder / "model.safetensors", folder / "pytorch_model.bin"
    try:
        weights = load_file(safe) if safe.is_file() else torch.load(older, "cpu", weights_only=True)
        layer.load_state_dict({name.removeprefix("linear."): weight for name, weight in weights.items()})
    except (OSError, SafetensorError, UnpicklingError, RuntimeError) as error:
        raise UserError(f"{folder}: neither model.safetensors nor pytorch_model.bin fits config.json ({error}); fetch "
                        "it again") from error  # fmt: skip
    return nn.Sequential(layer, ACTIVATIONS[activation]())


def _pooling(path: Path) -> str:
    settings = read_json(path)
    named = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    chosen = settings.get("pooling_mode") or [
        named.get(key, key) for key, value in settings.items() if key.startswith("pooling_mode_") and value is True
    ]
    chosen = [chosen] if isinstance(chosen, str) else chosen
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise UserError(f"{path}: pooling {' + '.join(chosen)} is not supported, only {' or '.join(POOLINGS)}; {ELSE}")
    return chosen[0]


def write_embeddings(folder: Path, load: Callable[[], Encoder], texts: list[str], batch_size: int, about: dict) -> Path:
    """Encodes the texts to `folder`/embeddings.npy (n, d') float32, unless it exists with the same `about`.

    An interrupted run resumes from part files. about: everything that determines the vectors; stored in the manifest.
    """
    path, manifest = folder / "embeddings.npy", folder / "embeddings.json"
    if manifest.is_file() and path.is_file() and read_json(manifest)["about"] == about:
        return path
    parts = [folder / "parts" / f"{start:09d}.npy" for start in range(0, len(texts), PART)]
    note = folder / "parts" / "about.json"
    if not note.is_file() or read_json(note) != about:
        for part in (folder / "parts").glob("*.npy"):
            part.unlink()
        write_json(note, about)
    encoder, bar = load(), progress_bar(len(texts), "embed", "item")
    for number, part in enumerate(parts):
        mine = texts[number * PART : (number + 1) * PART]
        if part.is_file():
            bar.update(len(mine))
        else:
            _save(part, encoder.encode(mine, batch_size, bar))
    bar.close()
    vectors = np.concatenate([np.load(part, allow_pickle=False) for part in parts])
    _save(path, vectors)
    write_json(manifest, {"about": about, "items": len(texts), "width": vectors.shape[1]})
    for part in [*parts, note]:
        part.unlink()
    (folder / "parts").rmdir()
    return path


def _save(path: Path, vectors: np.ndarray) -> None:
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.save(file, vectors, allow_pickle=False)
