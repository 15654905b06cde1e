"""Checks of a model folder, without torch and before any work: complete files of a complete model."""

import json
from pathlib import Path
from zipfile import is_zipfile

from genrec.runtime.errors import UserError

JSON = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
VOCABULARIES = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDICES = tuple(f"{name}.index.json" for name in WEIGHTS)
LFS = b"version https://git-lfs"  # how a file of Git begins that stands for one which was not fetched
AGAIN = "fetch or write the folder again"


def no_model(path: str) -> UserError:
    return UserError(
        f"{path}: no model there; give a folder or a Hugging Face name, or make a random one: "
        f"atspeed init-model --output {path} --shape tiny"
    )


def check_model_path(path: str) -> None:
    """Raises UserError for what can only be a folder and is none, and for a folder that holds no whole model; NAME and
    OWNER/NAME may be those of the hub."""
    folder = Path(path)
    if folder.is_dir():
        check_model_folder(folder)
    elif path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise no_model(path)


def check_model_folder(folder: Path) -> None:
    """Raises UserError that names a file of the folder, if one is missing or damaged or it is a LoRA adapter.

    Of weights their lengths are looked at, not their values; of the vocabulary, whether it is there.
    """
    if (folder / "adapter_config.json").is_file():
        base = _read_object(folder / "adapter_config.json").get("base_model_name_or_path")
        raise UserError(
            f"{folder}: is a LoRA adapter of {base}, not a whole model; merge it first, with peft's "
            "AutoPeftModelForCausalLM.from_pretrained(…).merge_and_unload().save_pretrained(NEW), save the tokenizer "
            "there too, and give NEW"
        )
    if not (folder / "config.json").exists():
        raise no_model(str(folder))
    for name in JSON:
        if (folder / name).exists():
            _read_object(folder / name)
    for name in VOCABULARIES:
        if (folder / name).exists():
            _check_size(folder / name)
    for file in _weights(folder):
        _check_weights(file)


def _weights(folder: Path) -> list[Path]:
    """The files of the weights, as transformers looks for them."""
    for name, index in zip(WEIGHTS, INDICES, strict=True):
        if (folder / name).exists():
            return [folder / name]
        if (folder / index).exists():
            shards = _read_object(folder / index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise UserError(f"{folder / index}: lists no weights; {AGAIN}")
            return [folder / str(shard) for shard in sorted(set(shards.values()))]
    raise UserError(f"{folder}: holds no weights ({' or '.join(WEIGHTS)}); {AGAIN}")


def _check_size(file: Path) -> int:
    """Bytes of a file. Raises UserError if it is none, is empty or is a pointer of Git LFS."""
    if not file.is_file():
        raise UserError(f"{file}: no such file; {AGAIN}")
    with file.open("rb") as opened:
        if opened.read(len(LFS)) == LFS:
            raise UserError(f"{file}: is a pointer of Git LFS, not the file; fetch it: git lfs pull")
    if not file.stat().st_size:
        raise UserError(f"{file}: is empty; {AGAIN}")
    return file.stat().st_size


def _check_weights(file: Path) -> None:
    """A file of safetensors begins with the length of its header (8 bytes), which says where each weight ends; one of
    PyTorch is a ZIP archive, which ends with its table of contents, or, before PyTorch 1.6, a bare pickle."""
    size = _check_size(file)
    if file.suffix != ".safetensors":
        with file.open("rb") as opened:
            archive = opened.read(2) == b"PK"
        if archive and not is_zipfile(file):
            raise UserError(f"{file}: damaged or truncated; {AGAIN}")
        return
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = opened.read(length) if length <= size - 8 else b""
    try:
        ends = [each["data_offsets"][1] for name, each in json.loads(header).items() if name != "__metadata__"]
        whole = size == 8 + length + max(ends, default=0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"{file}: damaged or truncated; {AGAIN}")


def _read_object(file: Path) -> dict:
    _check_size(file)
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON, perhaps truncated ({error}); {AGAIN}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a JSON object; {AGAIN}")
    return content
