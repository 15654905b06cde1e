"""What does not need torch does not import it: help, and what is refused, come within a second."""

import ast
import inspect
import resource
import subprocess
import sys

import pytest

import beamsd
from atspeed.__main__ import command_names
from conftest import ROOT, program
from genrec.data.toy import make_toy
from genrec.runtime.files import write_json

HEAVY = ("torch", "transformers", "pandas", "matplotlib")
SPECGR_PROGRAMS = [f"specgr.{name}" for name in ("process_data", "run", "speed", "sweep", "train")]
# As `python -m` starts a module; at its end it says on stdout what was imported.
RUNNER = f"""
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    print("imported:", *(name for name in {HEAVY} if name in sys.modules))
"""
TOY = "--dataset toy --data_path {data}"
FINETUNE = f"finetune --output_dir {{new}} --base_model {{no}} {TOY}"
TRAIN = (
    "train --output_dir {new} --base_model {no} --target_model {no} --train_data {no} --valid_data {no} "
    "--dataset toy --data_path {data}"
)
BENCHMARK = f"benchmark --output_dir {{new}} {TOY}"
COMPARE = f"compare --output_dir {{new}} --target_model {{no}} --draft_models {{no}} {TOY}"
TEACH = f"teacher --target_model {{no}} --output_dir {{new}} {TOY}"
INFERENCE = f"inference --output_dir {{new}} --target_model {{no}} {TOY}"
SPECGR = "--config {root}/code/specgr/configs/toy.yaml --data_path {data}"
REFUSED = {  # program and flags -> what the line says
    f"{TRAIN} --model_class Nope": "--model_class Nope: choose from",
    f"{TRAIN} --model_class SFTModel --alpha 1.5": "--alpha 1.5: must be in 0 … 1",
    f"{TRAIN} --model_class SFTModel --r_original 2": "--r_original 2: must be in 0 … 1",
    f"{TRAIN} --model_class SFTModel --select_by luck": "--select_by luck: choose from",
    f"{TRAIN} --model_class SFTModel --epochs ten": "--epochs takes int, not 'ten'",
    f"{TRAIN} --model_class SFTModel": "no: not there, or not finished",
    f"{FINETUNE} --dtype bf16": "--dtype bf16: choose from",
    f"{FINETUNE} --item_rows letters": "--item_rows letters: choose from random, level",
    f"{FINETUNE} --mixed_precision fp8": "--mixed_precision fp8: choose from",
    f"{FINETUNE} --epochs 0": "--epochs 0: must be at least 1",
    f"{FINETUNE} --batch_size 5 --micro_batch_size 2": "--batch_size 5 is not a multiple of 2",
    f"{FINETUNE} --report_to mlflow": "--report_to mlflow: choose from",
    f"{FINETUNE} --load_in_8bit --full": "--load_in_8bit does not go with --full",
    f"{FINETUNE} --max_users 0": "--max_users 0: must be at least 1",
    f"{FINETUNE} --index {{no}}": "no: no such file",
    FINETUNE: "no: no model there; give a folder",
    f"finetune --output_dir {{made}} --base_model some/base {TOY}": "was made with --base_model None, not",
    "teacher --target_model {no} --output_dir {new} --dataset nowhere": "no such data set folder",
    f"{TEACH} --beam_size 0": "--beam_size 0: must be at least 1",
    f"{TEACH} --beam_size 20000": "--beam_size 20000: must be at most 294, the identifiers that there are to recommend",
    f"{INFERENCE} --run_beam_sizes 0": "--run_beam_sizes 0: must be at least 1",
    f"{INFERENCE} --run_beam_sizes 3,301": "--run_beam_sizes 301: must be at most 294",
    f"{INFERENCE} --gamma 9": "--gamma 9: must be at most 4, the levels of an identifier",
    f"{INFERENCE} --draft_model {{no}} --draft_beam_size 5": "--draft_beam_size 5: must be at least 20, the largest of",
    f"{TRAIN} --model_class SFTModel --select_beam_size 301": "--select_beam_size 301: must be at most 294",
    f"quality --output_dir {{new}} {TOY} --beam_size 301": "--beam_size 301: must be at most 294",
    f"{BENCHMARK} --shape tiny --run_beam_sizes 301": "--run_beam_sizes 301: must be at most 294",
    f"{INFERENCE} --stop_list {{no}}": "no: no such file",
    INFERENCE: "no: not there, or not finished",
    f"{COMPARE} --gamma 0": "--gamma 0: must be at least 1",
    COMPARE: "no: not there, or not finished",
    f"quality --output_dir {{new}} {TOY} --baselines guess": "--baselines guess: choose from",
    f"quality --output_dir {{new}} {TOY} --split train": "--split train: choose from",
    f"{BENCHMARK} --shape tiny --methods luck": "--methods luck: choose from",
    f"{BENCHMARK} --shape huge": "--shape huge: choose from",
    f"{BENCHMARK} --target_model {{no}}": "no: not there, or not finished",
    "init_model --output {new} --shape huge": "--shape huge: choose from",
    "grow_model --model {no} --output {new} --shape llama-68m": "no: not there, or not finished",
    f"build_index {TOY} --method pq": "--method pq: choose from",
    f"build_index {TOY} --embeddings {{no}}": "--embeddings {no}: no such file",
    "process_data --output {new}": "--input is missing",
    "inspect nowhere": "no such data set folder",
    "make_toy --output {new} --n_items 3": "--n_items 3: must be at least 50",
    "roofline --results {no} --shape tiny --devices abacus": "--devices abacus: choose from",
    "show_tree --output tree.doc": "must end in .svg, .png, .pdf",
    f"specgr.train {SPECGR} --stage1.epoch 3": "unknown flag --stage1.epoch; did you mean --stage1.epochs?",
    f"specgr.train {SPECGR} --stages tigre": "--stages tigre: choose from",
    f"specgr.train {SPECGR} --dataset nowhere": "no such data set folder",
    f"specgr.run {SPECGR} --index {{data}}/toy/toy.index.json --output_dir {{no}}": "tiger: not there, or not finished",
    f"specgr.run {SPECGR} --draft_size 0": "--draft_size 0: must be at least 1",
    f"specgr.sweep {SPECGR} --draft_sizes 0": "--draft_sizes 0: must be at least 1",
    f"specgr.run {SPECGR} --methods luck": "--methods luck: choose from",
    f"specgr.run {SPECGR} --eval_mode train": "--eval_mode train: choose from",
    f"specgr.sweep {SPECGR} --methods TIGER": "--methods TIGER: choose from",
    f"specgr.speed {SPECGR} --batch_sizes 8": "--batch_sizes 8: starts with 1",
}


def start(*command):
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env={"PYTHONPATH": "code"}, text=True, capture_output=True, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("imports")
    make_toy(n_items=300, n_users=60).save(path / "data" / "toy")
    write_json(path / "made" / "facts.json", {"stage": "finetune_llama", "arguments": {}})
    return path


def assert_refused(done, message):
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize("name", [*command_names(), *SPECGR_PROGRAMS])
def test_help_and_a_mistyped_flag_import_nothing_heavy(name):
    helped = start("-c", RUNNER, *program(name)[1:], "--help")
    assert helped.returncode == 0, helped.stderr
    assert helped.stdout.splitlines()[-1] == "imported:"
    config = ["--config", "code/specgr/configs/toy.yaml"] if name in SPECGR_PROGRAMS[1:] else []
    assert_refused(
        start("-c", RUNNER, *program(name)[1:], *config, "--no_such_flag", "1"), "unknown flag --no_such_flag"
    )


@pytest.mark.parametrize("command", REFUSED)
def test_what_needs_no_torch_to_be_refused_is_refused_without_it(command, folder):
    places = {"data": folder / "data", "new": folder / "new", "no": folder / "no", "made": folder / "made"}
    places["root"] = ROOT
    name, *flags = command.format(**places).split()
    assert_refused(start("-c", RUNNER, *program(name)[1:], *flags), REFUSED[command].format(**places))
    assert not (folder / "new").exists()


def test_beamsd_is_imported_as_far_as_it_is_used():
    for line, imported in (
        ("import beamsd", ""),
        ("from beamsd import Trie", "torch"),
        ("from beamsd import beam_search", "torch transformers"),
    ):
        done = start("-c", f"{line}\nimport sys\nprint(*(name for name in {HEAVY} if name in sys.modules))")
        assert done.stdout.strip() == imported, done.stderr


def test_the_names_of_beamsd_are_the_same_for_users_and_for_type_checkers():
    for_checkers = next(node for node in ast.parse(inspect.getsource(beamsd)).body if isinstance(node, ast.If))
    told = {alias.name: node.module for node in for_checkers.body for alias in node.names}
    assert sorted(told) == sorted(beamsd.__all__)
    for name, module in told.items():
        assert getattr(beamsd, name).__module__ == module
        assert name in dir(beamsd)
    with pytest.raises(AttributeError, match="no attribute 'Tire'"):
        beamsd.Tire  # noqa: B018


@pytest.mark.parametrize("command", [("--help",), ("train", "--help"), ("train", "--epoch", "3")])
def test_help_and_a_refusal_take_less_than_a_second_of_the_cpu(command):
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start("-m", "atspeed", *command)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1
