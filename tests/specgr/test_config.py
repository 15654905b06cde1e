"""One schema: what ships is valid, what is wrong is refused by name."""

from pathlib import Path

import pytest

from conftest import ROOT
from genrec.runtime.errors import UserError
from specgr import run
from specgr.configuration.config import Config, Validation, load_config, read_arguments
from specgr.train import Flags

SHIPPED = sorted((ROOT / "code/specgr/configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_configuration_is_valid(path):
    assert load_config(path).dataset


def test_games_office_and_phones_have_the_published_settings():
    games, office, phones = (load_config(ROOT / f"code/specgr/configs/{n}.yaml") for n in ("games", "office", "phones"))
    assert [c.tiger.d_model for c in (games, office, phones)] == [64, 128, 128]
    assert [c.tiger.layers for c in (games, office, phones)] == [4, 6, 8]
    first = [(c.stage1.learning_rate, c.stage1.epochs, c.stage1.lambda_emb) for c in (games, office, phones)]
    assert first == [(1e-3, 100, 6), (3e-4, 50, 8), (3e-4, 50, 8)]
    assert [(c.stage2.learning_rate, c.stage2.lambda_emb) for c in (games, office, phones)] == [
        (1e-4, 6), (3e-5, 20), (3e-5, 20)
    ]  # fmt: skip
    assert (games.aux.draft_size, games.aux.num_beams, games.plus.draft_size, games.plus.num_beams) == (50, 20, 20, 50)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data_path: x", "dataset is missing"),
        (
            "dataset: x\nstage1: {learnin_rate: 1}",
            r"unknown key stage1\.learnin_rate; did you mean stage1.learning_rate",
        ),
        ("dataset: x\nsede: 1", "unknown key sede; did you mean seed"),
        ("dataset: x\nstage1: 3", "stage1 is a section of keys, not 3"),
        ("dataset: x\nstage1: {batch_size: 0}", "stage1.batch_size 0: must be at least 1"),
        ("dataset: x\ntiger: {dropout: 1.5}", "tiger.dropout 1.5: must be in 0 … 0.99"),
        ("dataset: x\ntiger: {d_model: wide}", "tiger.d_model takes int, not 'wide'"),
        ("dataset: x\ntiger: {d_model: true}", "tiger.d_model takes int, not True"),
        ("dataset: x\nseed: 3000000000", "seed 3000000000: must be in 0 … 2147483647"),
        ("dataset: x\nunisrec: {hidden: 9}", "unisrec.hidden 9 is no multiple of unisrec.heads 2"),
        ("dataset: x\nplus: {draft_size: 0}", r"plus\.draft_size 0: must be at least 1"),
        ("dataset: x\ntrain_tiger: {steps: 0}", "train_tiger: epochs 0 and steps 0; one of them must be 0, one not"),
        ("dataset: [", "not valid YAML"),
        ("dataset: x\nseed: 1\nseed: 2", "key 'seed' stands twice; keep one .*line 3"),
        ("dataset: x\nplus: {threshold: -1, threshold: -9}", "key 'threshold' stands twice"),
        ("dataset: 0123", "dataset takes str, not 83"),
        ("- dataset", "not a YAML mapping"),
    ],
)
def test_a_mistake_is_refused_by_file_and_key(tmp_path, content, message):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(UserError, match=rf"c\.yaml: .*{message}"):
        load_config(tmp_path / "c.yaml")


def test_flags_override_the_file_and_its_sections_keep_the_rest(tmp_path):
    (tmp_path / "c.yaml").write_text("dataset: x\nstage1: {lambda_emb: 2, learning_rate: 1e-3}\n")
    arguments = "--stage1.epochs 3 --stage1.learning_rate=5e-4 --plus.threshold -1.2 --stages tiger,stage1 --overwrite"
    config, flags = read_arguments(["--config", str(tmp_path / "c.yaml"), *arguments.split()], Flags)
    assert (config.stage1.lambda_emb, config.stage1.epochs, config.stage1.learning_rate) == (2.0, 3, 5e-4)
    assert config.plus.threshold == -1.2
    assert config.aux == Config("x").aux
    assert flags == Flags(("tiger", "stage1"), overwrite=True)


def test_an_empty_section_has_the_defaults_and_a_shared_one_is_changed_once(tmp_path):
    plan = "stage1: &plan {batch_size: 512}\nstage2: *plan\n"
    (tmp_path / "c.yaml").write_text("dataset: x\nvalidation:\nplus:\n" + plan)
    config = load_config(tmp_path / "c.yaml", {"validation.k": "5", "stage1.batch_size": "1024"})
    assert (config.validation, config.plus) == (Validation(k=5), Config("x").plus)
    assert (config.stage1.batch_size, config.stage2.batch_size) == (1024, 512)


def test_text_stays_as_typed(tmp_path):
    (tmp_path / "c.yaml").write_text("dataset: x\nembeddings: file.npy\n")
    arguments = "--output_dir 2024_01_05 --dataset 0123 --index 1e3 --embeddings null --results 2026-11-21"
    config, flags = read_arguments(["--config", str(tmp_path / "c.yaml"), *arguments.split()], run.Flags)
    assert (config.output_dir, config.dataset, config.index) == ("2024_01_05", "0123", "1e3")
    assert (config.embeddings, flags.results) == (None, "2026-11-21")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing"),
        (["--config", "none.yaml"], "none.yaml: no such file"),
        (["--config", "--overwrite"], "--config needs a value"),
        (["--config", "F", "--output_dir"], "--output_dir needs a value"),
        (["--config", "F", "--seed.x", "1"], r"unknown flag --seed\.x"),
        (["--config", "F", "--stage1.lr", "1"], r"unknown flag --stage1\.lr"),
        (["--config", "F", "--overwrit"], "unknown flag --overwrit; did you mean --overwrite"),
        (["--config", "F", "--seed"], "--seed needs a value"),
        (["--config", "F", "tiger"], "unexpected argument 'tiger'"),
    ],
)
def test_a_mistyped_flag_is_refused(tmp_path, arguments, message):
    Path(tmp_path / "c.yaml").write_text("dataset: x")
    with pytest.raises(UserError, match=message):
        read_arguments([str(tmp_path / "c.yaml") if a == "F" else a for a in arguments], Flags)
