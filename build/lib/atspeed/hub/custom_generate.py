"""The decoding method of this repository: BeamSD, beam search over its catalogue with the lists of `generate`, faster.

    model = AutoModelForCausalLM.from_pretrained(REPO)
    model.generate(**inputs, num_beams=20, num_return_sequences=20, custom_generate=REPO, trust_remote_code=True)

`atspeed export` writes this file as custom_generate/generate.py, trie.safetensors and, where there is a draft, draft/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import AutoModelForCausalLM
from transformers.utils import cached_file

try:  # in this form, or transformers asks for a package "beamsd"
    from beamsd import Trie, speculate
except ImportError as error:
    raise ImportError("this decoding method needs atspeed: pip install atspeed") from error

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from beamsd import SpeculativeOutput

TRIE = "trie.safetensors"
DRAFT = "draft"  # the folder of the draft
_decoders: dict[tuple, speculate] = {}  # each learns from its calls which way to draft is the fastest


def generate(
    model: PreTrainedModel, *args: Any, draft_model: PreTrainedModel | None = None, trie: Trie | None = None,
    **kwargs: Any,
) -> SpeculativeOutput | torch.Tensor:  # fmt: skip
    """What `model.generate` would give with the sequences of `trie` alone.

    draft_model: drafts; None: the repository's own, if it has one. trie: the legal sequences; None: the repository's.
    The rest is `generate`'s; max_new_tokens is the trie's length and do_sample is off, unless given.
    """
    source = model.name_or_path
    key = (source, str(model.device), model.dtype, id(draft_model), id(trie))
    if key not in _decoders:
        if trie is None:
            file = _found(source, TRIE)
            if file is None:
                raise ValueError(f"{source} has no {TRIE}: load the model from the repository of its custom_generate")
            trie = Trie.load(file).to(model.device)
        if draft_model is None and _found(source, f"{DRAFT}/config.json"):
            draft_model = AutoModelForCausalLM.from_pretrained(source, subfolder=DRAFT, dtype=model.dtype)
            draft_model = draft_model.to(model.device).eval()
        _decoders[key] = speculate(draft_model, trie=trie)
    decode = _decoders[key]
    given = {name: value for name, value in kwargs.items() if value is not None}
    if "generation_config" not in given:
        given = {"max_new_tokens": decode.trie.length, "do_sample": False} | given  # type: ignore[union-attr]
    return model.generate(*args, **given, custom_generate=decode)


def _found(source: str, name: str) -> str | None:
    """Where a file of the repository lies on this machine; None if it has no such file."""
    try:
        return cached_file(source, name)
    except OSError:
        return None
