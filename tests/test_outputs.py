"""An output that cannot be written, and an input that is damaged: one line, exit code 2, and nothing left behind."""

import gzip
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from conftest import ROOT, program
from genrec.data.toy import make_toy
from genrec.runtime.artefacts import already_done, hold
from genrec.runtime.files import write_json

TOY = "--dataset toy --data_path {data}"
SPECGR = "--config {root}/code/specgr/configs/toy.yaml --data_path {data}"
# Commands that need no training before them; stages 1 to 4 are in atspeed/test_pipeline.py.
FOLDERS = {  # which write a folder
    "make_toy": "make_toy --output {out} --n_items 300 --n_users 60",
    "init_model": "init_model --output {out} --layers 1",
    "process_data": "process_data --input {raw} --output {out} --overwrite",
    "quality": f"quality --output_dir {{out}} {TOY}",
    "benchmark": f"benchmark --output_dir {{out}} --shape tiny {TOY}",
    "grow_model": "grow_model --model {made} --output {out} --shape llama-68m --overwrite",
    "specgr.process_data": "specgr.process_data --category Games --source {data} --output {out} --overwrite",
    "specgr.run": f"specgr.run {SPECGR} --results {{out}} --overwrite",
    "specgr.sweep": f"specgr.sweep {SPECGR} --results {{out}} --overwrite",
    "specgr.speed": f"specgr.speed {SPECGR} --results {{out}} --overwrite",
}
FILES = {  # which write a file
    "inspect": "inspect toy --data_path {data} --output {out}.html",
    "show_tree": "show_tree --output {out}.svg",
}
INDEX = f"build_index {TOY} --embeddings {{vectors}} --method rq-kmeans --codebooks 4,8 --index_name mine"
LIMITED = {name: FOLDERS[name] for name in ("make_toy", "init_model", "process_data")} | {
    "inspect": FILES["inspect"],
    "build_index": INDEX,
}


@pytest.fixture
def world(tmp_path):
    make_toy(n_items=300, n_users=60).save(tmp_path / "data/toy")
    write_json(tmp_path / "made/facts.json", {"stage": "finetune_llama", "arguments": {}})
    (tmp_path / "raw.csv").write_text(
        "user,item,time\n" + "".join(f"u{k % 70},i{k % 90},{10**9 + k}\n" for k in range(4000))
    )
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32))
    (tmp_path / "outputs").mkdir()
    return tmp_path


def start(world, command, limit=None):
    """Run a command; limit: the bytes that a file of it may have, which ends a write as a full disk does."""
    places = {"data": world / "data", "made": world / "made", "raw": world / "raw.csv", "root": ROOT,
              "vectors": world / "vectors.npy", "out": world / "outputs/out"}  # fmt: skip
    name, *flags = command.format(**places).split()
    environment = os.environ | {"PYTHONPATH": str(ROOT / "code"), "LOG_DIR": str(world / "log"), "OMP_NUM_THREADS": "1"}
    limited = limit and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    return subprocess.run(
        [sys.executable, *program(name), *flags], cwd=ROOT, env=environment, preexec_fn=limited, text=True, check=False,
        capture_output=True,
    )  # fmt: skip


def last_line(done):
    assert done.returncode == 2, done.stderr
    lines = done.stderr.rstrip("\n").split("\n")
    assert not any(line.startswith("Traceback") for line in lines), done.stderr
    return lines[-1]


@pytest.mark.parametrize("there", ["file", "below"])
@pytest.mark.parametrize("name", [*FOLDERS, *FILES, "build_index"])
def test_an_output_that_cannot_be_is_refused_before_any_work(name, there, world):
    """It is a file where a folder is to be, or the other way, or it lies below a file; the user may well be root."""
    command = (FOLDERS | FILES | {"build_index": INDEX})[name]
    out = world / ("data/toy/toy.mine" if name == "build_index" else "outputs/out")
    if there == "file" and name in FILES:
        for suffix in (".html", ".svg"):
            out.with_suffix(suffix).mkdir()
    else:
        out.write_text("mine")
    if there == "below":
        if name == "build_index":
            pytest.skip("its folder lies beside the data")
        command = command.replace("{out}", "{out}/below")
    before = sorted(world.rglob("*"))
    done = start(world, command)
    line = last_line(done)
    assert line.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert any(said in line for said in ("is a file, and a folder", "is a folder, and a file", "cannot be written",
                                         "is there already"))  # fmt: skip
    assert sorted(world.rglob("*")) == before


@pytest.mark.parametrize("name", sorted(FOLDERS.keys() - {"quality", "benchmark"}))  # which name folders below it
def test_of_two_runs_into_one_output_the_second_says_so(name, world):
    out = world / "outputs/out"
    hold(out)
    said = last_line(start(world, FOLDERS[name]))
    assert said == f"error: {out}: another run is at work there; wait for it, or choose another output"
    assert not list((world / "outputs").iterdir())


def test_of_two_runs_of_the_same_quality_the_second_says_so(world):
    command = f"{FOLDERS['quality']} --baselines popularity"
    assert start(world, command).returncode == 0
    (out,) = (world / "outputs/out").iterdir()
    shutil.rmtree(out)
    work = out.with_name(f"{out.name}.work")
    assert not already_done(out, work, "quality", {}, overwrite=False)  # holds the folder
    assert last_line(start(world, command)).startswith(f"error: {work}: another run is at work there")
    assert not out.exists()


def test_a_page_that_was_written_may_be_overwritten(world):
    command = FILES["inspect"]
    assert start(world, command).returncode == 0
    assert "is there already" in last_line(start(world, command))
    assert start(world, f"{command} --overwrite").returncode == 0


@pytest.mark.parametrize("name", LIMITED)
def test_a_disk_that_is_full_is_said_and_leaves_no_half_of_a_file(name, world):
    done = start(world, LIMITED[name], limit=2_000)
    assert "cannot be written (File too large); make room" in last_line(done), done.stderr
    left = [*(world / "outputs").rglob("*"), *(world / "data").rglob("*")]
    assert not [path for path in left if ".partial-" in path.name], left
    assert not (world / "outputs/out/facts.json").exists()
    if name == "build_index":
        assert not (world / "data/toy/toy.mine.json").exists()
        assert start(world, LIMITED[name]).returncode == 0, "with room it goes on"


def truncated(content):
    return content[: len(content) // 2]


def zeroed(content):
    """As a crash leaves a file whose length was written and whose contents were not."""
    return bytes(len(content))


TRAIN = f"specgr.train {SPECGR} --index {{data}}/toy/toy.index.json --embeddings {{vectors}} --output_dir {{out}}"
INPUTS = {  # what is damaged -> the command that reads it
    "vectors.npy": INDEX,
    "data/toy/items.parquet": INDEX,
    "data/toy/toy.index.json": TRAIN,
    "data/toy/sequential_train.txt": TRAIN,
    "raw.parquet": "process_data --input {raw_folder}/raw.parquet --output {out}",
    "raw.csv.gz": "process_data --input {raw_folder}/raw.csv.gz --output {out}",
    "data/toy/interactions.parquet": "inspect toy --data_path {data} --output {out}.html",
    "made/facts.json": FOLDERS["grow_model"],
}


@pytest.mark.parametrize("damage", [truncated, zeroed])
@pytest.mark.parametrize("file", INPUTS)
def test_a_damaged_input_is_named_and_nothing_is_written(file, damage, world):
    if file == "data/toy/sequential_train.txt" and damage is truncated:
        pytest.skip("fewer rows are rows")
    table = pyarrow.csv.read_csv(world / "raw.csv")
    pyarrow.parquet.write_table(table, world / "raw.parquet")
    pyarrow.parquet.write_table(table, world / "data/toy/interactions.parquet")
    items = {"raw_id": [f"B{item}" for item in range(300)], "item": range(300)}
    pyarrow.parquet.write_table(pyarrow.table(items), world / "data/toy/items.parquet")
    (world / "raw.csv.gz").write_bytes(gzip.compress((world / "raw.csv").read_bytes()))
    path = world / file
    path.write_bytes(damage(path.read_bytes()))
    before = sorted(world.rglob("*"))
    done = start(world, INPUTS[file].replace("{raw_folder}", str(world)))
    line = last_line(done)
    assert line.startswith("error: ")
    assert file.rpartition("/")[2] in line
    assert sorted(world.rglob("*")) == before
