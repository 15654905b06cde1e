"""The card of an exported model, made of the facts of its folders."""

from __future__ import annotations

import json

from atspeed.checkpoints.checkpoint import DataSetting

# Arguments that are paths, or told elsewhere.
SKIPPED = (
    "base_model", "target", "data_path", "dataset", "index", "prompt_template", "item_separator", "chat_template",
    "target_model", "train_data", "valid_data",
)  # fmt: skip


def model_card(
    name: str, facts: dict, setting: DataSetting, draft: dict | None, items: int, levels: int, license: str | None,
    base_model: str | None, results: str | None,
) -> str:  # fmt: skip
    """facts, draft: of the target and of its draft. items, levels: of the catalogue. license: of the model; None: it is
    not known, and the card says so. base_model: what the target was fine-tuned from. results: a table in Markdown."""
    head = {
        "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["custom_generate", "generative-recommendation", "speculative-decoding", "atspeed"],
    }  # fmt: skip
    if base_model:
        head["base_model"] = base_model
    head["license"] = license or "other"
    loss = facts.get("results", {}).get("eval_loss")
    lines = [
        "---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", "",
        f"# {name}", "",
        f"A generative recommender of {items:,} items: it reads a history and writes the identifier of the next item, "
        f"{levels} tokens. Fine-tuned on {setting.dataset}"
        + (f" from {base_model}" if base_model else "") + (f"; validation loss {loss:.4f}" if loss else "") + ".", "",
        "```python", "from atspeed import Recommender", "",
        f'recommender = Recommender.from_pretrained("{name}"' + (f', draft="{name}/draft")' if draft else ")"),
        "recommender.recommend([[12, 7, 99]], k=20)[0].items", "```", "",
        "or, with transformers and beamsd alone, on prompts of your own:", "",
        "```python",
        "model.generate(",
        "    **inputs, num_beams=20, num_return_sequences=20,",
        f'    custom_generate="{name}", trust_remote_code=True,', ")",
        "```", "",
        "The lists are those of beam search over the catalogue (`catalogue.json`, `trie.safetensors`), whoever drafts.",
        "",
        "## Licence", "",
        f"{license}." if license else "Not stated by who exported it"
        + (f"; that of its base, {base_model}, applies." if base_model else "."), "",
        "## Prompt", "", "```", setting.template, "```", "",
        f"Items are joined by {setting.separator!r}"
        + ("; the tokenizer's chat template stands around." if setting.chat else "."),
        f"The last {setting.max_history} items of a history are read, up to {setting.cutoff} tokens.", "",
    ]  # fmt: skip
    if results:
        lines += ["## Results", "", results.strip(), ""]
    lines += ["## Training", "", *_arguments(facts)]
    if draft:
        lines += ["", "Of the draft (`draft/`):", "", *_arguments(draft)]
    return "\n".join(lines) + "\n"


def _arguments(facts: dict) -> list[str]:
    rows = [
        f"| {key} | {value} |" for key, value in facts["arguments"].items() if key not in SKIPPED and value is not None
    ]
    versions = ", ".join(f"{package} {version}" for package, version in facts.get("versions", {}).items())
    commit = f", commit {facts['commit']}" if facts.get("commit") else ""
    return ["| argument | value |", "|---|---|", *rows, "", f"{facts.get('date', '')}; {versions}{commit}"]
