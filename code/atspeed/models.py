"""Models and tokenizers: loading any decoder-only model, and making random ones that need no download."""

import io
from pathlib import Path
from tempfile import TemporaryDirectory

import sentencepiece
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from atspeed.processes import this_process
from atspeed.prompts import PROMPT
from atspeed.shapes import Shape, check_shape, no_model
from genrec.artefacts import make_facts, write_facts
from genrec.catalogue import Catalogue
from genrec.errors import UserError
from genrec.files import atomic_path, write_json

disable_progress_bar()  # of loading and writing weights, which is seconds; ours show what takes long


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Raises UserError if there is no tokenizer at `path`."""
    load_config(path)
    return AutoTokenizer.from_pretrained(path)


def teach_tokenizer(path: str, catalogue: Catalogue) -> PreTrainedTokenizerBase:
    """The tokenizer at `path`, and the identifiers' tokens added to it: as it will be in the checkpoint.

    A tokenizer that is saved may be another one than before: transformers 5 does not save the `legacy` of LLaMA's, on
    which depends what follows an added token. So it is saved and loaded here, before anything is read with it.
    Raises UserError as `load_tokenizer` does, and if the added tokens do not come back.
    """
    tokenizer = load_tokenizer(path)
    tokenizer.add_tokens(catalogue.tokens)
    with TemporaryDirectory() as folder:
        load_config(path).save_pretrained(folder)  # has a say in the tokenizer's class
        tokenizer.save_pretrained(folder)
        saved = AutoTokenizer.from_pretrained(folder)
    before, after = (each.convert_tokens_to_ids(catalogue.tokens) for each in (tokenizer, saved))
    if before != after:
        lost = next(token for token, b, a in zip(catalogue.tokens, before, after, strict=True) if b != a)
        raise UserError(f"{path}: its tokenizer forgets identifier token {lost!r} when it is saved; take another base")
    return saved


def load_model(
    path: str, dtype: torch.dtype | str = "float32", quantised: BitsAndBytesConfig | None = None
) -> PreTrainedModel:
    """A decoder-only model in eval mode: on the CPU, or, quantised, on this process's device.

    Raises UserError if there is no model at `path`, or it is not decoder-only.
    """
    load_config(path)
    where = {"quantization_config": quantised, "device_map": {"": this_process().device}} if quantised else {}
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **where).eval()


def load_config(path: str) -> PreTrainedConfig:
    """Raises UserError if there is no model at `path`, or it is not decoder-only."""
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise no_model(path) from error
    if config.is_encoder_decoder:
        raise UserError(f"{path}: a {config.model_type} is an encoder-decoder; give a decoder-only model")
    return config


def vocabulary_size(path: str) -> int:
    """Rows of the embedding of the model at `path`; there may be more than its tokenizer has tokens."""
    return load_config(path).vocab_size


def add_item_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue) -> list[int]:
    """Teach the tokenizer the identifiers' tokens and give the model rows for them; returns their ids."""
    tokenizer.add_tokens(catalogue.tokens)
    if len(tokenizer) > model.config.vocab_size:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return tokenizer.convert_tokens_to_ids(catalogue.tokens)


def check_same_vocabulary(path: str, tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue) -> None:
    """Raises UserError if the model at `path` does not share the target's tokenizer, item tokens aside."""
    own = load_tokenizer(path)
    own.add_tokens(catalogue.tokens)
    if own.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"{path}: its tokenizer ({len(own)} tokens) is not the target's ({len(tokenizer)} tokens); speculative "
            "decoding needs one vocabulary, so give a draft of the target's family"
        )


def init_model(path: Path, shape: Shape, seed: int) -> int:
    """Write a randomly initialised LLaMA and its tokenizer as a checkpoint folder; returns the number of weights."""
    with atomic_path(path) as partial:
        partial.mkdir(parents=True)
        write_tokenizer(partial)
        vocabulary = len(AutoTokenizer.from_pretrained(partial))
        torch.manual_seed(seed)
        config = LlamaConfig(
            **{**vars(shape), "vocab_size": shape.vocab_size or vocabulary},
            max_position_embeddings=2048,
            bos_token_id=1,
            eos_token_id=2,
        )
        model = LlamaForCausalLM(config)
        model.save_pretrained(partial)
        write_facts(partial, make_facts("init_model", {"seed": seed, **vars(shape)}))
    return model.num_parameters()


def random_model(
    shape: str, catalogue: Catalogue, dtype: torch.dtype | str, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A random LLaMA of a shape, in memory, with a tokenizer that knows the catalogue."""
    chosen = check_shape(shape)
    with TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(**{**vars(chosen), "vocab_size": chosen.vocab_size or len(tokenizer)})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    add_item_tokens(model, tokenizer, catalogue)
    return model.eval(), tokenizer


def write_tokenizer(folder: Path) -> None:
    """Train a SentencePiece model on the prompt's text, with bytes to fall back on, and write it as LLaMA's does."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([PROMPT.format(items=", ")]), model_writer=model, model_type="bpe",
        vocab_size=512, hard_vocab_limit=False, byte_fallback=True, character_coverage=1.0,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, normalization_rule_name="identity",
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False, **tokens},
    )
