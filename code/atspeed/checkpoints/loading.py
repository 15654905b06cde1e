"""Loading of decoder-only models and tokenizers, and random ones that need no download."""

import io
from pathlib import Path
from string import ascii_lowercase
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from atspeed.checkpoints.model_files import no_model
from atspeed.checkpoints.shapes import check_shape
from atspeed.template import PROMPT
from genrec.data.catalogue import Catalogue
from genrec.runtime.errors import UserError
from genrec.runtime.files import write_json
from genrec.runtime.pretrained import load_pretrained

disable_progress_bar()  # of loading and writing weights, which is seconds; ours show what takes long


def load_tokenizer(path: str, model: str | None = None) -> PreTrainedTokenizerBase:
    """model: whose it is; None is the one at `path`.

    Raises UserError if there is no tokenizer at `path`, it is damaged, or it has no EOS, which ends a response.
    """
    load_model_config(model or path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # of any kind, if its files are not what they should be
        raise UserError(
            f"{path}: its tokenizer cannot be read ({_first_sentence(error)}); fetch or write the folder again"
        ) from error
    if tokenizer.get_vocab().keys() <= {*tokenizer.all_special_tokens}:
        raise UserError(f"{path}: its tokenizer has no vocabulary; put its files (tokenizer.json or the like) there")
    if tokenizer.eos_token_id is None:
        raise UserError(f'{path}: its tokenizer has no EOS; name one as "eos_token" in its tokenizer_config.json')
    return tokenizer


def teach_tokenizer(path: str, catalogue: Catalogue) -> PreTrainedTokenizerBase:
    """The tokenizer at `path` with the identifiers' tokens added, as the checkpoint will have it.

    A tokenizer that is saved may be another one than before: transformers 5 does not save the `legacy` of LLaMA's, on
    which depends what follows an added token. So it is saved and loaded here, before anything is read with it.
    Raises UserError as `load_tokenizer` does, and if the added tokens do not come back.
    """
    tokenizer = load_tokenizer(path)
    tokenizer.add_tokens(catalogue.tokens)
    with TemporaryDirectory() as folder:
        load_model_config(path).save_pretrained(folder)  # has a say in the tokenizer's class
        tokenizer.save_pretrained(folder)
        saved = AutoTokenizer.from_pretrained(folder)
    before, after = (each.convert_tokens_to_ids(catalogue.tokens) for each in (tokenizer, saved))
    if before != after:
        lost = next(token for token, b, a in zip(catalogue.tokens, before, after, strict=True) if b != a)
        raise UserError(f"{path}: its tokenizer forgets identifier token {lost!r} when it is saved; take another base")
    return saved


def load_model(
    path: str,
    dtype: torch.dtype | str = "float32",
    device: torch.device | str = "cpu",
    quantised: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """A decoder-only model in eval mode, loaded straight onto a device.

    Raises UserError if there is no model at `path`, it is not decoder-only, or its weights are not whole, see
    `load_pretrained`.
    """
    load_model_config(path)
    how = {"quantization_config": quantised} if quantised else {}
    return load_pretrained(AutoModelForCausalLM, path, device=device, dtype=dtype, **how)


def load_model_config(path: str) -> PreTrainedConfig:
    """Raises UserError if there is no model at `path`, or it is not decoder-only."""
    if not Path(path).is_dir():
        _find_on_hub(path)
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        if Path(path).is_dir() and not (Path(path) / "config.json").exists():
            raise no_model(path) from error
        raise UserError(f"{path}: its config.json cannot be used ({_first_sentence(error)})") from error
    if config.is_encoder_decoder:
        raise UserError(f"{path}: a {config.model_type} is an encoder-decoder; give a decoder-only model")
    return config


def _find_on_hub(name: str) -> None:
    """Raises UserError if a model is neither in the cache nor on the hub, after one try, and says why."""
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        get_hf_file_metadata(hf_hub_url(name, "config.json"))
    except errors.HFValidationError as error:
        raise no_model(name) from error
    except errors.OfflineModeIsEnabled as error:
        raise UserError(f"{name}: no such folder, and not in the cache, with HF_HUB_OFFLINE set; unset it") from error
    except errors.GatedRepoError as error:
        raise UserError(
            f"{name}: is gated; ask for access on its page of the hub, and log in: hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{name}: no such folder, and no such model on the hub; check the name, or if it is private log in: "
            "hf auth login"
        ) from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{name}: has no config.json on the hub, so it is no whole model; give another") from error
    except Exception as error:  # of the HTTP library, which has changed its name from release to release
        raise UserError(
            f"{name}: no such folder, and the hub cannot be asked for it ({_first_sentence(error)}); check the "
            "network, or give the folder of a downloaded model"
        ) from error


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".:") or type(error).__name__


def check_positions(path: str, cutoff: int, fix: str) -> None:
    """Raises UserError, which ends in `fix`, if the model at `path` has no positions for `cutoff` tokens. With rotary
    embeddings any number of positions can be computed."""
    config = load_model_config(path).get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and most < cutoff and not hasattr(config, "rope_parameters"):
        raise UserError(f"{path}: has positions for {most} tokens, and --cutoff is {cutoff}; {fix} of at most {most}")


def vocabulary_size(path: str) -> int:
    """Rows of the embedding of the model at `path`; there may be more than its tokenizer has tokens."""
    return load_model_config(path).get_text_config().vocab_size


def add_item_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue) -> list[int]:
    """Add the identifiers' tokens to the tokenizer and rows for them to the model; returns their ids."""
    tokenizer.add_tokens(catalogue.tokens)
    if len(tokenizer) > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return tokenizer.convert_tokens_to_ids(catalogue.tokens)


def begin_rows_by_level(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue, seed: int
) -> None:
    """Have the rows of the item tokens begin as the row of a letter for their level, plus noise of half its size.

    To a pretrained model a history then looks like "a b c d a b c d", a pattern that it continues: it soon predicts the
    right level, and learns to tell the tokens of a level apart. A random row is like no token that it knows.
    """
    item_tokens = tokenizer.convert_tokens_to_ids(catalogue.tokens)
    level_of = {token: level for item in catalogue.identifiers.values() for level, token in enumerate(item)}
    letters = [tokenizer(f" {letter}", add_special_tokens=False)["input_ids"][-1] for letter in ascii_lowercase]
    begin = [letters[level_of[token] % len(letters)] for token in catalogue.tokens]
    generator = torch.Generator().manual_seed(seed)
    weights = [module.weight for module in (model.get_input_embeddings(), model.get_output_embeddings())]
    for weight in weights[:1] if weights[0] is weights[1] else weights:
        rows = weight.data[begin]
        noise = torch.randn(rows.shape, generator=generator) * (rows.float().std() / 2).cpu()
        weight.data[item_tokens] = rows + noise.to(rows)


def check_same_vocabulary(path: str, tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue) -> None:
    """Raises UserError if the model at `path` does not share the target's tokenizer, item tokens aside."""
    own = load_tokenizer(path)
    own.add_tokens(catalogue.tokens)
    if own.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"{path}: its tokenizer ({len(own)} tokens) is not the target's ({len(tokenizer)} tokens); speculative "
            "decoding needs one vocabulary, so give a draft of the target's family"
        )


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
    import sentencepiece  # here, since gpu_check does without

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([PROMPT.replace("{history}", ", ")]), model_writer=model, model_type="bpe",
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
