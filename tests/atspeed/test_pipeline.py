"""The scripts themselves, as a user starts them: the whole pipeline on a small toy, and every refusal."""

import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pandas as pd
import peft
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from atspeed import Recommender
from conftest import ROOT, STAGE_COMMANDS, STAGES, environment, program, script, succeed
from genrec.data.catalogue import Catalogue
from genrec.data.toy import make_toy
from genrec.evaluation.baselines import BASELINES
from genrec.runtime.text import read_json

RESULTS = "output/toy/results/draft-AtSpeedSModel/K1-5_N12_gamma3_batch16_float32_test"

WRITES = {
    "finetune_llama": "target", "generate_teacher_data": "*_teacher_data", "train": "draft-*", "inference": "results",
    "quality": "quality",
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small toy, two base models, and all four stages run on them."""
    folder = tmp_path_factory.mktemp("world")
    make_toy(n_items=300, n_users=60).save(folder / "data" / "toy")
    succeed_python("init_model", "--output", folder / "base", "--layers", "2")
    folder.joinpath("output").mkdir()
    logs = {stage: succeed(stage, folder, *(["--full"] if stage == "finetune_llama" else [])) for stage in STAGES}
    return folder, logs


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def succeed_python(stage, *flags):
    command = [sys.executable, *program(stage), *map(str, flags)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE)


def test_the_pipeline_ends_with_a_checked_table(world):
    folder, logs = world
    results = folder / RESULTS
    assert {path.name for path in results.iterdir()} == {
        "results.csv", "results.md", "results.png", "recommendations.jsonl", "facts.json",
    }  # fmt: skip
    users = sum(
        1 for line in (folder / "data/toy/sequential_test.txt").read_text().splitlines() if len(line.split()) > 1
    )
    assert f"{2 * users} of {2 * users} lists identical for all methods; 0 differ" in logs["inference"]
    assert (results / "results.png").read_bytes().startswith(b"\x89PNG")
    table = (results / "results.md").read_text()
    assert all(method in table for method in ("| generate ", "| gamma 0 ", "| speculative "))
    lines = [json.loads(line) for line in (results / "recommendations.jsonl").read_text().splitlines()]
    known = {int(item) for item in read_json(folder / "data/toy/toy.index.json")}
    assert len(lines) == users
    for line in lines:
        assert len(line["items"]) >= 5
        assert known.issuperset(line["items"])
        assert len(set(line["items"])) == len(line["items"]) == len(line["scores"])
        assert line["scores"][0] < 0
        assert line["scores"] == sorted(line["scores"], reverse=True)
    for stage in STAGES:
        blank, header, shown = (folder / "log" / f"{stage}.log").read_text().split("\n", 2)
        start = rf"== \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d  \S+/python\S* -m atspeed {STAGE_COMMANDS.get(stage, stage)} "
        assert blank == ""
        assert re.fullmatch(rf"{start}.*--dataset toy .*", header)
        assert shown in logs[stage] + "\n"


def test_a_stage_shows_one_bar_and_a_line_an_epoch_and_nothing_else_of_its_libraries(world):
    """A picture of a bar begins with a carriage return; what stands before the next line stays on the terminal."""
    folder, logs = world
    bars = {
        "finetune_llama": "training", "generate_teacher_data": "teacher data", "train": "training",
        "inference": "inference", "quality": "beam search",
    }  # fmt: skip
    for stage in STAGES:
        log = (folder / "log" / f"{stage}.log").read_bytes().decode().partition("\n== ")[2]
        lines = [line.rpartition("\r")[2].strip() for line in log.split("\n")]
        assert sum(line.startswith(f"{bars[stage]}: ") for line in lines) == 1, log
        assert sum("%|" in line for line in lines) == 1, log
        assert not any("{'" in line or "Warning" in line for line in lines), log
    for stage, also in (("finetune_llama", ""), ("train", r", accepted levels a round \d\.\d{4}")):
        line = rf"epoch 2 of 2: validation loss \d\.\d{{4}}{also}"
        assert re.search(line, logs[stage]), logs[stage]


def test_baselines_are_judged_as_the_target_is_and_the_target_as_in_stage_4(world):
    folder, logs = world
    quality = folder / "output/toy/quality/K20_target_batch16_float32_test"
    assert {path.name for path in quality.iterdir()} == {
        "quality.csv", "quality.md", "quality.png", "over.csv", "facts.json"
    }  # fmt: skip
    table = pd.read_csv(quality / "quality.csv", index_col="method")
    assert list(table.index) == [*BASELINES, "target"]
    assert all(f"| {method} " in logs["quality"] for method in table.index)
    for processes in ("1", "2"):
        flags = ("--beam_size", "5", "--overwrite")
        succeed("quality", folder, *flags, BASELINES="popularity", NUM_PROCESSES=processes)
        (other,) = quality.parent.glob("K5_target_batch16_float32_test_baselines-*")
        ours = pd.read_csv(other / "quality.csv", index_col="method")
        stage4 = pd.read_csv(folder / RESULTS / "results.csv")
        stage4 = stage4[(stage4["method"] == "gamma 0") & (stage4["K"] == 5)].iloc[0]
        for name in ("Recall@1", "Recall@5", "NDCG@5"):
            assert ours.loc["target", name] == pytest.approx(stage4[name]), name
        assert "Recall@10" not in ours.columns, "nothing is claimed beyond K"
        assert ours.loc["popularity", "Recall@5"] == pytest.approx(table.loc["popularity", "Recall@5"])
    assert pd.read_csv(quality / "quality.csv", index_col="method").equals(table), "other settings, another folder"
    assert "done already" in succeed("quality", folder)


def test_a_stopped_item_is_never_recommended_and_needs_no_training(world, tmp_path):
    """What is recommended first, and one of two items that share an identifier."""
    folder, _ = world
    before = recommended(folder / RESULTS)
    sharing = [items for items in Catalogue.load(folder / "data/toy/toy.index.json").items_of.values() if items[1:]]
    stopped = {*(items[0] for items in before.values()), *(items[0] for items in sharing)}
    (tmp_path / "stopped.txt").write_text("".join(f"{item}\n" for item in sorted(stopped)))
    output = tmp_path / "results"
    log = succeed("inference", folder, "--output_dir", str(output), STOP_LIST=str(tmp_path / "stopped.txt"))
    assert f"{2 * len(before)} of {2 * len(before)} lists identical for all methods; 0 differ" in log
    assert f"{len(stopped)} items stopped" in log
    after = recommended(output)
    assert after.keys() == before.keys()
    assert all(len(items) >= 5 and stopped.isdisjoint(items) for items in after.values())


def test_an_item_that_joined_the_catalogue_is_recommended_without_training(world, tmp_path):
    """It shares the identifier of what is recommended first; an old item whose identifier changed is refused."""
    folder, _ = world
    identifiers = Catalogue.load(folder / "data/toy/toy.index.json").identifiers
    before = recommended(folder / RESULTS)
    first, new = next(iter(before.values()))[0], max(identifiers) + 1
    Catalogue(identifiers | {new: identifiers[first]}).save(tmp_path / "grown.json")
    Catalogue(identifiers | {first: identifiers[first - 1]}).save(tmp_path / "changed.json")
    flags = ("--max_users", "8", "--output_dir", str(tmp_path / "results"), "--index")
    log = succeed("inference", folder, *flags, str(tmp_path / "grown.json"))
    assert "1 items of the catalogue are new since it was trained" in log
    lists = recommended(tmp_path / "results").values()
    assert any(new in items for items in lists)
    assert all(items.index(new) > items.index(first) for items in lists if new in items and first in items)
    output, code = script("inference", folder, *flags, str(tmp_path / "changed.json"))
    assert code == 2
    assert "with other identifier index" in output


def test_results_are_kept_by_what_made_them(world, tmp_path):
    """Other settings have a folder of their own, and the same are not measured again."""
    folder, _ = world
    flags = ("--max_users", "4", "--output_dir", str(tmp_path / "results"))
    for variables, name in (
        ({}, "K1-5_N12_gamma3_batch16_float32_test_4users-seed0"),
        ({"DRAFT_MODEL": "", "RUN_BEAM_SIZES": "5"}, "K5_batch16_float32_test_4users-seed0"),
    ):
        succeed("inference", folder, *flags, **variables)
        assert (tmp_path / "results" / name / "results.csv").is_file()
    first = tmp_path / "results/K1-5_N12_gamma3_batch16_float32_test_4users-seed0"
    before = (first / "results.csv").read_bytes()
    assert "done already" in succeed("inference", folder, *flags)
    assert (first / "results.csv").read_bytes() == before
    assert not [path for path in (tmp_path / "results").iterdir() if path.name.endswith(".work")]


def test_an_interrupted_stage_4_goes_on_where_it_was(world, tmp_path):
    """Also behind a line that was cut off: the batch that was kept, marked here by its time, is not decoded again."""
    folder, _ = world
    flags = ("--max_users", "4", "--output_dir", str(tmp_path / "results"))
    succeed("inference", folder, *flags)
    (whole,) = (tmp_path / "results").iterdir()
    expected = recommended(whole)
    shutil.rmtree(whole)
    work = whole.with_name(f"{whole.name}.work")
    kill("inference", folder, lambda: any(f.stat().st_size for f in work.glob("records-*")), *flags)
    (records,) = work.glob("records-*")
    kept = [record | {"seconds": 1e4} for record in json.loads(records.read_text().splitlines()[0])]
    records.write_text(f'{json.dumps(kept)}\n[{{"request": 3, "meth')
    assert "resumed" in succeed("inference", folder, *flags)
    assert recommended(whole) == expected
    table = pd.read_csv(whole / "results.csv").set_index("K")
    assert (table.loc[1, "ms"] == 1e7).all()
    assert (table.loc[5, "ms"] < 1e7).all()
    assert (table["users"] == 4).all()
    assert not work.exists()


def test_an_interrupted_comparison_goes_on_where_it_was(world, tmp_path):
    """Of what was kept, all methods are marked to have taken the same time."""
    folder, _ = world
    flags = ("--max_users", "2", "--output_dir", str(tmp_path))
    variables = {"DRAFT_MODELS": str(folder / "output/toy/draft-AtSpeedSModel")}
    kill("compare", folder, lambda: any(f.stat().st_size for f in tmp_path.rglob("records-*")), *flags, **variables)
    (records,) = tmp_path.rglob("records-*")
    kept = [record | {"seconds": 1e4} for record in json.loads(records.read_text().splitlines()[0])]
    records.write_text("".join(f"{json.dumps([one | {'request': i} for one in kept])}\n" for i in (0, 1)) + '[{"req')
    assert "resumed" in succeed("compare", folder, *flags, **variables)
    (results,) = tmp_path.iterdir()
    table = pd.read_csv(results / "comparison.csv").set_index("K")
    assert (table.loc[1, "speed_up"] == 1).all()
    assert (table.loc[5, "speed_up"] != 1).any()


def test_an_interrupted_quality_goes_on_to_the_same_table_with_another_number_of_processes(world, tmp_path):
    folder, _ = world
    flags = ("--batch_size", "1", "--output_dir")
    variables = {"BASELINES": "popularity", "SPLIT": "valid"}
    succeed("quality", folder, *flags, str(tmp_path / "whole"), **variables)
    killed = tmp_path / "killed"

    def begun():
        return any(path.stat().st_size for path in killed.rglob("records-1.jsonl"))

    kill("quality", folder, begun, *flags, str(killed), NUM_PROCESSES="2", **variables)
    kept = sum(len(path.read_bytes().splitlines()) for path in killed.rglob("records-*"))
    with next(killed.rglob("records-1.jsonl")).open("a") as half:
        half.write('[{"method": "tar')
    output = succeed("quality", folder, *flags, str(killed), **variables)
    assert "resumed" in output
    (table,), (expected,) = (run.rglob("quality.csv") for run in (killed, tmp_path / "whole"))
    left = pd.read_csv(expected)["users"][0] - kept
    assert f"/{left} [" in output.rpartition("beam search: ")[2], output
    assert table.read_bytes() == expected.read_bytes()
    assert not list(killed.glob("*.work"))


def recommended(folder):
    (lists,) = folder.rglob("recommendations.jsonl")
    lines = lists.read_text().splitlines()
    return {line["user"]: line["items"] for line in map(json.loads, lines)}


def lists_of(folder):
    """User -> items, of all shards in order."""
    tables = [pd.read_parquet(path) for path in sorted(folder.glob("shard-*.parquet"))]
    rows = pd.concat(tables)
    assert rows["user"].is_unique
    return {user: list(items) for user, items in zip(rows["user"], rows["items"], strict=True)}


def test_every_user_of_a_file_gets_the_list_of_the_recommender(world, tmp_path):
    folder, _ = world
    users = {f"u{i}": [i % 50, (7 * i) % 50, (3 * i + 1) % 50] for i in range(23)}
    source = tmp_path / "users.jsonl"
    source.write_text("".join(json.dumps({"user": u, "history": h}) + "\n" for u, h in users.items()))
    draft = str(folder / "output/toy/draft-AtSpeedSModel")
    variables = {"INPUT": str(source), "K": "5", "DECODE_BATCH_SIZE": "4"}
    output = succeed("recommend", folder, "--shard_size", "8", **variables, OUTPUT=str(tmp_path / "lists"))
    assert "23 users, 5 items each, 3 files" in output
    recommender = Recommender.from_pretrained(folder / "output/toy/target", draft)
    found = lists_of(tmp_path / "lists")
    expected = [each.items for each in recommender.recommend(list(users.values()), k=5)]
    assert list(found) == list(users)
    assert list(found.values()) == expected
    # Cut off after its first shard, with a half-written one and a claim that nobody holds.
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "lists", cut)
    (cut / "arguments.json").write_text(json.dumps(read_json(cut / "facts.json")["arguments"]))
    for name in ("facts.json", "shard-00001-of-00003.parquet", "shard-00002-of-00003.parquet"):
        (cut / name).unlink()
    (cut / ".shard-00001-of-00003.parquet.claim").touch()
    before = (cut / "shard-00000-of-00003.parquet").stat().st_mtime_ns
    two = {"DRAFT_MODEL": "", "NUM_PROCESSES": "2"}
    assert "resumed" in succeed("recommend", folder, "--shard_size", "8", **variables, **two, OUTPUT=str(cut))
    assert (cut / "shard-00000-of-00003.parquet").stat().st_mtime_ns == before
    assert lists_of(cut) == found
    assert "done already" in succeed("recommend", folder, "--shard_size", "8", **variables, OUTPUT=str(cut))
    output, code = script("recommend", folder, "--shard_size", "8", **(variables | {"K": "4"}), OUTPUT=str(cut))
    assert (code, "--overwrite" in output) == (2, True)
    source.write_text(source.read_text() + '{"user": "late", "history": [99999]}\n')
    output, code = script("recommend", folder, **variables, OUTPUT=str(tmp_path / "new"))
    assert (code, "user 'late' (row 24): item 99999 is not in the catalogue" in output) == (2, True)
    assert not (tmp_path / "new").exists(), "before any work"
    succeed("recommend", folder, **variables, ON_UNKNOWN="skip", OUTPUT=str(tmp_path / "new"))
    assert lists_of(tmp_path / "new") == found | {"late": []}


def test_the_example_of_the_readme_recommends(world):
    folder, _ = world
    readme = (ROOT / "README.md").read_text()
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "Recommender" in code]
    names = {}
    exec(code.replace("output/quickstart/toy", str(folder / "output" / "toy")), names)
    assert [len(each.items) for each in names["lists"]] == [20, 20]
    assert names["lists"][0].scores == sorted(names["lists"][0].scores, reverse=True)


@pytest.fixture(scope="module")
def foreign(world, tmp_path_factory):
    """The target as somebody else would give it away: weights and tokenizer; and a LoRA adapter of it."""
    folder, _ = world
    given, adapter = (tmp_path_factory.mktemp(name) for name in ("foreign", "adapter"))
    target, tokenizer = folder / "output/toy/target", AutoTokenizer.from_pretrained(folder / "output/toy/target")
    model = AutoModelForCausalLM.from_pretrained(target)
    for each in (given, adapter):
        tokenizer.save_pretrained(each)
    model.save_pretrained(given)
    with warnings.catch_warnings(action="ignore"):  # peft asks transformers in its older words
        lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        lora.save_pretrained(adapter)
    return given, adapter


HISTORIES = [[3], [5, 7, 9], [40, 2, 33, 7]]


def test_a_model_of_other_origin_stands_in_the_targets_place(world, foreign, tmp_path):
    folder, _ = world
    given, adapter = foreign
    own = {"OUTPUT_DIR": str(tmp_path / "output")}
    output = succeed("adopt", folder, MODEL=str(given), **own)
    assert "<a_" in output.split("what the model reads, 1")[1]
    shares = re.search(r"on legal codes, by level: ([\d., ]+)", output)[1].split(", ")
    assert len(shares) == 4
    assert all(0 < float(share) <= 1 for share in shares)
    adopted, target = (
        Recommender.from_pretrained(where / "output/toy/target").recommend(HISTORIES, k=5)
        for where in (tmp_path, folder)
    )
    assert adopted == target
    succeed("generate_teacher_data", folder, TARGET_MODEL=str(tmp_path / "output/toy/target"), **own)
    assert "done already" in succeed("adopt", folder, MODEL=str(given), **own)
    lora = {"OUTPUT_DIR": str(tmp_path / "lora"), "MODEL": str(adapter), "BASE": str(given)}
    succeed(
        "adopt", folder, **lora, PROMPT_TEMPLATE=str(written(tmp_path, "Bought: {history}. Next:")), ITEM_SEPARATOR="; "
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "lora/toy/target")
    base = AutoModelForCausalLM.from_pretrained(given)
    with warnings.catch_warnings(action="ignore"):
        expected = peft.PeftModel.from_pretrained(base, adapter).merge_and_unload()
    assert all(torch.equal(a, b) for a, b in zip(merged.parameters(), expected.parameters(), strict=True))
    recommender = Recommender.from_pretrained(tmp_path / "lora/toy/target")
    said = AutoTokenizer.from_pretrained(given).decode(recommender._encoder.encode([3, 7]), skip_special_tokens=True)
    items = ["".join(recommender.catalogue.identifiers[item]) for item in (3, 7)]
    assert said == f"Bought: {items[0]}; {items[1]}. Next:"


def written(folder, text):
    (folder / "prompt.txt").write_text(text)
    return folder / "prompt.txt"


def test_what_cannot_be_adopted_is_refused(world, foreign, tmp_path):
    folder, _ = world
    given, _ = foreign
    own = {"OUTPUT_DIR": str(tmp_path / "output")}
    for variables, message in (
        ({"MODEL": ""}, "MODEL= is empty"),
        ({"MODEL": str(tmp_path / "nowhere")}, "nowhere"),
        ({"MODEL": str(folder / "base")}, "the tokenizer lacks"),
        ({"MODEL": str(given), "BASE": "b"}, "is no adapter"),
        ({"MODEL": str(given), "PROMPT_TEMPLATE": str(written(tmp_path, "no place"))}, "needs {history} once"),
        ({"MODEL": str(given), "CHAT_TEMPLATE": "true"}, "has no chat template"),
    ):
        output, code = script("adopt", folder, **(own | variables))
        assert (code, message in output) == (2, True), output
    assert not (tmp_path / "output/toy/target").exists()


def test_a_sweep_is_one_command(world):
    folder, _ = world
    variables = {"DRAFT_MODEL_NAME": "draft-AtSpeedSModel", "PARAMETER": "gamma", "VALUES": "1 3", "TEST_USERS": "4"}
    output = succeed("sweep", folder, **variables)
    assert "8 of 8 lists identical for all methods" in output  # at two K
    (swept,) = (folder / "output/toy/sweep").iterdir()
    rows = list(csv.DictReader((swept / "sweep.csv").open()))
    assert [(row["K"], row["value"]) for row in rows] == [(k, v) for k in "15" for v in ("", "1", "3")]
    assert {path.suffix for path in swept.glob("sweep.*")} == {".csv", ".md", ".png"}
    assert "done already" in succeed("sweep", folder, **variables)


def test_drafts_are_compared_in_one_table(world):
    folder, _ = world
    draft = folder / "output" / "toy" / "draft-AtSpeedSModel"
    output = succeed("compare", folder, "--max_users", "4", DRAFT_MODELS=str(draft))
    assert "8 of 8 lists identical for all methods; 0 differ" in output
    (results,) = (folder / "output/toy/comparison").iterdir()
    assert results.name.startswith("K1-5_N12_gamma3_batch1_float32_4users-seed0_drafts-")
    rows = pd.read_csv(results / "comparison.csv")
    assert len(rows) == 2 * 2  # verifications, K
    assert rows[rows["verification"] == "strict"]["accepted_levels"].between(0, 3).all()
    assert "done already" in succeed("compare", folder, "--max_users", "4", DRAFT_MODELS=str(draft))
    output, code = script("compare", folder, DRAFT_MODELS=f"{draft} {draft}")
    assert (code, output.endswith("no such folder; give folders with commas between them\n")) == (2, True)
    output, code = script("compare", folder, DRAFT_MODELS=f"{draft},{draft}")
    assert code == 2
    assert "two have one class and seed" in output


def test_a_finished_stage_is_not_done_again_and_not_overwritten_by_other_arguments(world):
    folder, _ = world
    checkpoint = folder / "output" / "toy" / "target" / "model.safetensors"
    before = checkpoint.stat().st_mtime_ns
    assert "done already" in succeed("finetune_llama", folder, "--full")
    output, code = script("finetune_llama", folder, "--full", "--seed", "5")
    assert code == 2
    assert "was made with --seed 0, not 5" in output
    assert checkpoint.stat().st_mtime_ns == before


SCORE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.manual_seed(int(sys.argv[2]))
model, tokenizer = (c.from_pretrained(sys.argv[1]) for c in (AutoModelForCausalLM, AutoTokenizer))
ids = tokenizer(sys.argv[3], return_tensors="pt")["input_ids"]
print(ids.tolist(), model(ids).logits[0, -1].double().sum().item())
"""


@pytest.mark.parametrize("full", [True, False], ids=["full", "LoRA"])
def test_the_checkpoint_alone_gives_the_same_scores_in_a_new_process_with_another_seed(world, tmp_path, full):
    folder, _ = world
    target = folder / "output" / "toy" / "target"
    if not full:
        succeed("finetune_llama", folder, OUTPUT_DIR=str(tmp_path), EPOCHS="1")
        target = tmp_path / "toy" / "target"
        before = AutoModelForCausalLM.from_pretrained(folder / "base")
        after = AutoModelForCausalLM.from_pretrained(target)
        known = before.config.vocab_size
        rows, head = after.get_input_embeddings().weight, after.get_output_embeddings().weight
        assert torch.equal(rows[:known], before.get_input_embeddings().weight), "only the item tokens' rows are trained"
        assert torch.equal(head[:known], before.get_output_embeddings().weight)
        assert not torch.equal(
            after.model.layers[0].self_attn.q_proj.weight, before.model.layers[0].self_attn.q_proj.weight
        )
    token = next(iter(read_json(target / "catalogue.json").values()))[0]
    assert len(AutoTokenizer.from_pretrained(target)(token)["input_ids"]) <= 3  # <s>, perhaps a space, and the token
    moved = shutil.copytree(target, tmp_path / "moved")
    said = [
        subprocess.run(
            [sys.executable, "-c", SCORE, moved, str(seed), f"items {token}"], check=True, text=True,
            stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
        ).stdout
        for seed in (1, 2)
    ]  # fmt: skip
    assert said[0] == said[1]


def losses(folder):
    """All losses of a training, in their order."""
    history = read_json(folder / "facts.json")["results"]["history"]
    return [row[name] for row in history for name in ("loss", "eval_loss") if name in row]


def test_two_machines_train_a_draft_to_the_same_losses(world, tmp_path):
    """As on two machines, which are this one, each with a process."""
    folder, _ = world
    made = {"TARGET_MODEL": "target", "TRAIN_DATA": "train_teacher_data", "VALID_DATA": "eval_teacher_data"}
    shared = {name: str(folder / "output/toy" / path) for name, path in made.items()}
    shared |= {"OUTPUT_DIR": str(tmp_path), "NUM_MACHINES": "2", "MAIN_PROCESS_PORT": free_port()}
    with ThreadPoolExecutor() as both:
        said = list(both.map(lambda rank: succeed("train", folder, MACHINE_RANK=rank, **shared), ("0", "1")))
    assert ["eval_loss" in text for text in said] == [True, False], "one process speaks and saves"
    draft = "toy/draft-AtSpeedSModel"
    assert losses(tmp_path / draft) == pytest.approx(losses(folder / "output" / draft), rel=1e-3)


@pytest.mark.slow
def test_two_processes_and_two_machines_on_the_cpu_run_every_stage_to_the_same_losses(world):
    """Stage 1 as on two machines, which are this one, each with a process; the others in two processes."""
    folder, _ = world
    two, port = {"OUTPUT_DIR": str(folder / "two")}, free_port()
    machines = [two | {"NUM_MACHINES": "2", "MACHINE_RANK": rank, "MAIN_PROCESS_PORT": port} for rank in ("0", "1")]
    with ThreadPoolExecutor() as both:
        said = list(both.map(lambda machine: succeed("finetune_llama", folder, "--full", **machine), machines))
    assert ["target: eval_loss" in text for text in said] == [True, False], "one process speaks and saves"
    logs = {stage: succeed(stage, folder, NUM_PROCESSES="2", **two) for stage in STAGES[1:]}
    assert "0 differ by a tie in float32" in logs["inference"]
    assert "| target  " in logs["quality"]
    for model, tolerance in (("target", 1e-5), ("draft-AtSpeedSModel", 1e-3)):  # of which teacher data are float16
        alone, shared = (losses(folder / output / "toy" / model) for output in ("output", "two"))
        assert shared == pytest.approx(alone, rel=tolerance)
    shards = [folder / name / "toy" / "train_teacher_data" for name in ("output", "two")]
    assert [p.name for p in sorted(shards[0].glob("*.safetensors"))] == [
        p.name for p in sorted(shards[1].glob("*.safetensors"))
    ]


@pytest.mark.parametrize(
    ("stage", "variables", "message"),
    [
        ("finetune_llama", {"TARGET_BASE": "/no/where"}, "/no/where: no model there"),
        ("generate_teacher_data", {"TARGET_MODEL": "nowhere"}, "written by: bash script/finetune_llama.sh"),
        ("train", {"TRAIN_DATA": "nowhere"}, "written by: bash script/generate_teacher_data.sh"),
        ("train", {"MODEL_CLASS": "AtSpeedX"}, "--model_class AtSpeedX: choose from SFTModel"),
        ("train", {"MODEL_CLASS": "WordKDModel"}, "FULL_VOCABULARY=true bash script/generate_teacher_data.sh"),
        ("train", {"CONSTRAINED_LOSS": "false", "CONSTRAINED_SOFTMAX": "true"}, "pass --alignment_over trie or level"),
        ("inference", {"DRAFT_MODEL": "nowhere"}, "written by: bash script/train.sh"),
        ("inference", {"DRAFT_BEAM_SIZE": "3"}, "--draft_beam_size 3"),
        ("inference", {"STOP_LIST": "nowhere"}, "nowhere: no such file"),
        ("quality", {"TARGET_MODEL": "nowhere"}, "written by: bash script/finetune_llama.sh"),
        ("quality", {"BASELINES": "popularity,BPR"}, "--baselines popularity,BPR: choose from popularity,co-occ"),
        ("quality", {"SPLIT": "train"}, "--split train: choose from valid, test"),
        ("quality", {"BEAM_SIZE": "0"}, "--beam_size 0: must be at least 1"),
    ],
)
def test_a_missing_input_says_which_stage_writes_it(world, stage, variables, message):
    folder, _ = world
    output, code = script(stage, folder, **variables)
    assert code == 2
    assert message in output.splitlines()[-1]
    assert "Traceback" not in output


def test_artefacts_of_another_data_set_are_refused(world, tmp_path):
    folder, _ = world
    make_toy(seed=1, n_items=300, n_users=120).save(tmp_path / "data" / "toy")
    for stage in STAGES[1:]:
        output, code = script(stage, tmp_path, TARGET_MODEL=str(folder / "output/toy/target"))
        assert code == 2
        assert "with other identifier index" in output
        assert "new since" not in output


@pytest.mark.parametrize("stage", STAGES)
def test_an_output_that_is_a_file_is_refused_before_any_work(world, tmp_path, stage):
    folder, _ = world
    (tmp_path / "toy").write_text("mine")
    made = {"TARGET_MODEL": "target", "TRAIN_DATA": "train_teacher_data", "VALID_DATA": "eval_teacher_data"}
    inputs = {name: str(folder / "output/toy" / path) for name, path in made.items()}
    output, code = script(stage, folder, OUTPUT_DIR=str(tmp_path), DRAFT_MODEL="", **inputs)
    assert code == 2, output
    line = output.rstrip("\n").rpartition("\n")[2]
    assert re.match(r"error: .*: (is a file, and a folder|cannot be written \(Not a directory)", line), output
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_is_full_is_said_and_the_stage_goes_on_when_there_is_room(world, tmp_path, stage):
    folder, _ = world
    shutil.copytree(folder / "output", tmp_path / "output", ignore=shutil.ignore_patterns(WRITES[stage]))
    variables = {"OUTPUT_DIR": str(tmp_path / "output"), "LOG_DIR": str(tmp_path / "log")}
    full = ["prlimit", "--fsize=20000", "bash", ROOT / "script" / f"{stage}.sh"]
    done = subprocess.run(
        full, env=environment(folder, **variables), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout
    last = done.stdout.rstrip("\n").rpartition("\n")[2]
    assert last.startswith("error: ")
    assert "File too large" in last
    assert "Traceback" not in done.stdout
    assert not list((tmp_path / "output").rglob(".*partial-*")), "half of a file"
    succeed(stage, folder, **variables)


def kill(stage, folder, begun, *flags, **variables):
    """Start the stage's script, and end all its processes by kill -9 once `begun()`."""
    process = subprocess.Popen(
        ["bash", ROOT / "script" / f"{stage}.sh", *flags], env=environment(folder, **variables), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    while not begun():
        assert process.poll() is None
        time.sleep(0.01)
    started = psutil.Process(process.pid)
    for one in (started, *started.children(recursive=True)):  # torchrun gives its workers sessions of their own
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "made", "processes"),
    [
        ("train", "draft-AtSpeedSModel", "1"),  # that a kill changes nothing, test_scale.py shows in every run
        ("train", "draft-AtSpeedSModel", "2"),
        ("finetune_llama", "target", "1"),
    ],
)
def test_an_interrupted_training_resumes_to_the_same_weights(world, tmp_path, stage, made, processes):
    """Interrupted by kill -9 within the first epoch; stage 1 trains LoRA, with dropout."""
    folder, _ = world
    for run in ("whole", "killed"):
        for name in ("train_teacher_data", "eval_teacher_data", *(["target"] if stage == "train" else [])):
            shutil.copytree(folder / "output" / "toy" / name, tmp_path / run / "toy" / name)
    variables = {"EPOCHS": "2", "SAVE_STEPS": "1", "NUM_PROCESSES": processes, "OUTPUT_DIR": str(tmp_path / "whole")}
    succeed(stage, folder, **variables)
    variables["OUTPUT_DIR"] = str(tmp_path / "killed")
    final = tmp_path / "killed" / "toy" / made
    kill(stage, folder, lambda: any(final.with_name(f"{made}.work").glob("checkpoint-*/whole")), **variables)
    assert not final.exists(), "a partial checkpoint under its final name"
    assert "resumed" in succeed(stage, folder, **variables)
    whole, killed = (
        AutoModelForCausalLM.from_pretrained(tmp_path / run / "toy" / made).state_dict() for run in ("whole", "killed")
    )
    for name, weight in whole.items():
        assert torch.equal(killed[name], weight), name


@pytest.mark.slow
def test_interrupted_teacher_data_are_finished_to_the_same_bytes(world, tmp_path):
    """Two processes, killed by kill -9 after the first shard: what they had written by then is not written again."""
    folder, _ = world
    flags = ("--shard_size", "4")
    whole, killed = (tmp_path / run / "toy" / "train_teacher_data" for run in ("whole", "killed"))
    variables = {"TARGET_MODEL": str(folder / "output/toy/target")}
    succeed("generate_teacher_data", folder, *flags, OUTPUT_DIR=str(tmp_path / "whole"), **variables)
    variables |= {"NUM_PROCESSES": "2", "OUTPUT_DIR": str(tmp_path / "killed")}
    kill("generate_teacher_data", folder, lambda: any(killed.glob("*.safetensors")), *flags, **variables)
    assert not (killed / "facts.json").exists(), "it was done before it was killed"
    begun = {path: path.stat().st_mtime_ns for path in killed.glob("*.safetensors")}
    assert "resumed" in succeed("generate_teacher_data", folder, *flags, **variables)
    assert all(path.stat().st_mtime_ns == written for path, written in begun.items())
    shards = sorted(path.name for path in whole.glob("*.safetensors"))
    assert [path.name for path in sorted(killed.glob("*.safetensors"))] == shards
    assert len(begun) < len(shards)
    for name in shards:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
