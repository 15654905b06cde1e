r"""Take a model that was fine-tuned elsewhere for what stage 1 writes: a target for all that follows.

    MODEL=/path/to/lc-rec DATASET=beauty PROMPT_TEMPLATE=prompt.txt bash script/adopt.sh
    atspeed adopt --model /path/to/lc-rec --dataset beauty --output_dir output/beauty/target

--model: a folder of a decoder-only model that generates the identifiers of --dataset, with its tokenizer, or of a LoRA
adapter, which is merged into its base (--base_model, if it is not where the adapter says). --prompt_template,
--item_separator, --chat_template: the prompt that it was fine-tuned with. Shows what the model reads, and how much of
its probability falls on legal codes, which is little where the prompt is not the one that it knows.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from atspeed.checkpoints.checkpoint import DataSetting, save_checkpoint
from atspeed.checkpoints.model_files import check_model_path
from atspeed.checkpoints.shapes import check_dtype
from atspeed.template import LC_REC, PromptTemplate
from genrec.data.dataset import load_dataset, take
from genrec.runtime.artefacts import already_done, clear, is_done, make_facts
from genrec.runtime.errors import UserError
from genrec.runtime.text import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from atspeed.prompts import EncodedSamples
    from beamsd import Trie

STAGE = "finetune_llama"  # whose output it stands for
ADAPTER = "adapter_config.json"
LOOKED_AT = 100  # validation users whose probabilities are looked at


def main(
    model: str,
    output_dir: str,
    dataset: str,
    data_path: str = "data",
    index: str | None = None,
    base_model: str | None = None,
    prompt_template: str | None = None,
    item_separator: str | None = LC_REC.separator,
    chat_template: bool = False,
    max_history: int = 20,
    cutoff: int = 512,
    dtype: str = "float32",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    check_dtype(dtype)
    prompt = PromptTemplate.read(prompt_template, item_separator or "", chat_template)
    arguments = {
        "adopted": model, "base_model": base_model, "dataset": dataset, "prompt_template": prompt.text,
        "item_separator": item_separator, "chat_template": chat_template, "max_history": max_history, "cutoff": cutoff,
        "dtype": dtype, "seed": seed,
    }  # fmt: skip
    data = load_dataset(data_path, dataset, index)
    base = _base_of(Path(model), base_model)
    check_model_path(base or model)
    output = Path(output_dir)
    work = output.with_name(output.name + ".work")
    if is_done(output, work, STAGE, arguments, overwrite):
        return

    from atspeed.checkpoints.loading import check_positions, load_model_config, load_tokenizer
    from atspeed.prompts import encode_samples
    from beamsd import Trie

    own = base is None or (Path(model) / "tokenizer_config.json").is_file()  # adapters may come without
    tokenizer = load_tokenizer(model if own else str(base), base)
    trie = Trie(data.catalogue.token_ids(tokenizer))
    check_positions(base or model, cutoff, "pass one")
    samples = take(data.samples("valid", max_history=max_history), LOOKED_AT, seed)
    encoded = encode_samples(tokenizer, data.catalogue, samples, cutoff, prompt)
    with TemporaryDirectory() as folder:  # some tokenizers of transformers 4 read otherwise once they have been saved
        load_model_config(base or model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        saved = encode_samples(load_tokenizer(folder), data.catalogue, samples, cutoff, prompt)
    if saved.prompts != encoded.prompts:
        raise UserError(f"{model}: its tokenizer, saved by this transformers, reads the prompts otherwise than before")
    loaded = _load(model, base, dtype, tokenizer)
    rows = loaded.get_input_embeddings().weight.shape[0]
    if trie.vocabulary_size > rows:
        raise UserError(
            f"{model}: has embeddings for {rows} tokens, and the identifiers reach token {trie.vocabulary_size - 1}; "
            "give the model that was fine-tuned with them"
        )
    shares = _legal_shares(loaded, trie, encoded)
    if already_done(output, work, STAGE, arguments, overwrite):
        return
    results = {f"legal_share_level_{level}": share for level, share in enumerate(shares)}
    setting = asdict(DataSetting.of(data, max_history, cutoff, prompt))
    save_checkpoint(output, loaded, tokenizer, data, make_facts(STAGE, arguments, setting=setting, results=results))
    clear(work)
    print(_report(tokenizer, encoded, shares, output))


def _base_of(model: Path, base_model: str | None) -> str | None:
    """The base of an adapter; None if it is a whole model."""
    if not (model / ADAPTER).is_file():
        if base_model is not None:
            raise UserError(f"--base_model {base_model}: {model} is no adapter ({ADAPTER} is not there); leave it out")
        return None
    said = read_json(model / ADAPTER)
    base = base_model or (said.get("base_model_name_or_path") if isinstance(said, dict) else None)
    if not base:
        raise UserError(f"{model}: an adapter that does not name its base; pass --base_model")
    return str(base)


def _load(model: str, base: str | None, dtype: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    from atspeed.checkpoints.loading import load_model

    if base is None:
        return load_model(model, dtype)
    from peft import PeftModel

    whole = load_model(base, dtype)
    if len(tokenizer) > whole.get_input_embeddings().weight.shape[0]:
        whole.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    try:
        return PeftModel.from_pretrained(whole, model).merge_and_unload()
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{model}: the adapter does not fit {base} ({str(error).splitlines()[0][:200]})") from error


def _legal_shares(model: PreTrainedModel, trie: Trie, encoded: EncodedSamples) -> list[float]:
    """By level, the share of the model's probability on legal codes along the true items, a mean over users."""
    import torch

    from atspeed.prompts import left_pad
    from atspeed.tree_logits import tree_logits

    sums = torch.zeros(trie.length)
    with torch.inference_mode():
        for start in range(0, len(encoded.prompts), 8):
            ids, mask = left_pad(encoded.prompts[start : start + 8])
            items = encoded.items[start : start + 8]
            tree = tree_logits(model, ids, mask, items[:, :1], items[:, None])
            children = trie.children(trie.walk(items)[:, :-1])
            said = tree.log_probs(trie.tokens[children][:, None])[:, 0].exp()
            sums += said.where(children != trie.dead, 0).sum(-1).sum(0)
    return (sums / len(encoded.prompts)).tolist()


def _report(
    tokenizer: PreTrainedTokenizerBase, encoded: EncodedSamples, shares: list[float], output: Path
) -> str:  # fmt: skip
    lines = []
    for row in range(min(3, len(encoded.prompts))):
        said = tokenizer.decode(encoded.prompts[row] + encoded.items[row].tolist())
        lines += [f"-- what the model reads, {row + 1}; the item comes last", said]
    levels = ", ".join(f"{share:.3f}" for share in shares)
    lines.append(f"share of its probability on legal codes, by level: {levels}")
    if shares[0] < 0.5:
        lines.append("that is little: is this the prompt that it was fine-tuned with, and the index?")
    return "\n".join([*lines, f"{output}: adopted"])
