"""The benchmark, as its user starts it."""

import csv
import os
import re
import subprocess
import sys

import pytest
import torch

from atspeed.benchmark.memory import peak_memory
from conftest import UNSET, script, succeed
from genrec.data.toy import make_toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The toy data, and no checkpoint."""
    folder = tmp_path_factory.mktemp("benchmark")
    subprocess.run([sys.executable, "-m", "atspeed", "make-toy", "--output", folder / "data" / "toy"], check=True)
    return folder


FLAGS = {"TARGET_MODEL": "", "DRAFT_MODEL": "", "SHAPE": "tiny", "REQUESTS": "3", "BATCH_SIZES": "2"}


def test_every_method_is_timed_on_random_weights_of_a_shape(folder):
    output, code = script("benchmark", folder, **FLAGS, DRAFT_SHAPE="tiny", RUN_BEAM_SIZES="1,4")
    assert code == 0, output
    (results,) = (folder / "output" / "toy" / "benchmark").iterdir()
    assert results.name.startswith("K1-4_gamma3_batch2_float32_3requests-seed0_")
    written = {f"{name}-float32.{kind}" for name in ("batch-2", "waits") for kind in ("csv", "md", "png")}
    assert {path.name for path in results.iterdir()} == written | {"facts.json", "arguments.json"}
    rows = list(csv.DictReader((results / "batch-2-float32.csv").open()))
    methods = {"generate", "gamma 0", "speculative", "trie", "hybrid", "auto", "relaxed", "coupled", "sample"}
    assert {(row["method"], row["K"]) for row in rows} == {(method, k) for method in methods for k in ("1", "4")}
    assert all(float(row["ms"]) > 0 for row in rows)
    assert {row["requests"] for row in rows} == {"3"}
    trie = next(row for row in rows if (row["method"], row["K"]) == ("trie", "4"))
    assert float(trie["target_calls"]) <= 2
    page = (results / "batch-2-float32.md").read_text()
    assert "6 of 6 lists identical for all methods" in page
    assert "tiny (1" in page
    assert "| drafter | requests |" in page
    assert (results / "batch-2-float32.png").stat().st_size > 10_000
    (results / "facts.json").unlink()  # as if it had been cut off: what is there is not measured again
    variables = FLAGS | {"DRAFT_SHAPE": "tiny", "RUN_BEAM_SIZES": "1,4"}
    assert "resumed" in succeed("benchmark", folder, **variables)
    assert (results / "batch-2-float32.md").read_text() == page
    assert "done already" in succeed("benchmark", folder, **variables)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"METHODS": "generate,oracle"}, "--methods generate,oracle: choose from"),
        ({"METHODS": "trie"}, "with generate and gamma 0 among them"),
        ({"SHAPE": ""}, "give --target_model or --shape"),
        ({"SHAPE": "huge"}, "--shape huge: choose from"),
        ({"BATCH_SIZES": "0"}, "--batch_sizes 0: must be at least 1"),
    ],
)
def test_flags_that_do_not_fit_are_refused(folder, change, message):
    output, code = script("benchmark", folder, **FLAGS | change)
    assert code == 2
    assert message in output


def test_peak_memory_is_what_the_work_takes():
    def work():
        return torch.ones(50_000_000)

    peak = peak_memory(work, torch.device("cpu"))
    assert peak is None or 180 < peak < 260


def test_an_interpreter_or_a_folder_that_is_not_beamsds_is_refused_before_any_work(folder, tmp_path):
    fake = tmp_path / "atspeed" / "beamsd.py"
    fake.parent.mkdir()
    fake.touch()
    flags = FLAGS | {"SHAPE": "", "TARGET_MODEL": str(tmp_path / "nowhere")}
    for options, message in (
        ({"BEAMSD": "", "BEAMSD_PYTHON": ""}, "set them to a clone of BeamSD"),
        ({"BEAMSD": str(folder), "BEAMSD_PYTHON": sys.executable}, "holds no atspeed/beamsd.py"),
        ({"BEAMSD": str(tmp_path), "BEAMSD_PYTHON": str(tmp_path / "python")}, "cannot be started"),
        ({"BEAMSD": str(tmp_path), "BEAMSD_PYTHON": sys.executable}, "BeamSD needs transformers 4.41 to 4.44"),
        (
            {"BEAMSD": str(tmp_path), "BEAMSD_PYTHON": sys.executable, "TARGET_MODEL": "", "SHAPE": "tiny"},
            "checkpoints",
        ),
    ):
        output, code = script("compare_beamsd", folder, **(flags | options))
        assert (code, message in output) == (2, True), output
    output, code = script("benchmark", folder, **(flags | {"VLLM_PYTHON": sys.executable}))
    assert (code, "it is to be an interpreter with vLLM" in output) == (2, True), output


@pytest.mark.skipif(not os.environ.get("VLLM_PYTHON"), reason="set VLLM_PYTHON to an interpreter with vLLM")
def test_vllms_beam_search_is_timed_and_what_is_no_item_is_counted(tmp_path, save_random_target):
    target = save_random_target(tmp_path, shape="tiny")  # its kernels want heads of at least 32 numbers
    options = {
        "REQUESTS": "3",
        "BATCH_SIZES": "1,2",
        "RUN_BEAM_SIZES": "1,4",
        "DRAFT_MODEL": "",
        "TARGET_MODEL": str(target),
    }
    output = succeed("benchmark", tmp_path, "--warmup", "0", **UNSET, **options, METHODS="generate,gamma 0")
    assert re.findall(
        r"vLLM beam search: \d+ of 6 lists are those of generate; \d+ of 15 sequences are no item", output
    )


@pytest.mark.skipif(not os.environ.get("BEAMSD"), reason="set BEAMSD and BEAMSD_PYTHON: see script/compare_beamsd.sh")
def test_the_released_beamsd_gives_the_same_lists_levels_and_calls(tmp_path):
    make_toy(n_items=300, n_users=60).save(tmp_path / "data" / "toy")
    succeed("reproduce", tmp_path, **UNSET, TARGET_SHAPE="micro", MODEL_CLASSES="SeqKDModel", TARGET_EPOCHS="1",
            DRAFT_EPOCHS="1", TEST_USERS="4", BASELINES="popularity")  # fmt: skip
    models = {"TARGET_MODEL": "target", "DRAFT_MODEL": "draft-SeqKDModel-0"}
    models = {name: str(tmp_path / "output" / "target-0" / "toy" / path) for name, path in models.items()}
    options = {"REQUESTS": "8", "BATCH_SIZES": "1,2", "DRAFT_BEAM_SIZE": "8"}
    output = succeed("compare_beamsd", tmp_path, "--constrained_softmax", "false", **models, **options)
    agreed = re.findall(r"(\d+) of (\d+) lists are those of generate", output)
    assert len(agreed) == 2 * 3  # batch sizes, ways to decode
    assert all(same == of and int(of) >= 8 for same, of in agreed)
    (results,) = (tmp_path / "output" / "toy" / "benchmark").iterdir()
    rows = {(row["method"], row["K"]): row for row in csv.DictReader((results / "batch-1-float32.csv").open())}
    for k in ("1", "5"):
        ours, theirs = rows["speculative", k], rows["BeamSD speculative", k]
        assert ours["accepted_levels"] == theirs["accepted_levels"], "where drafts rank alike"
        assert ours["target_calls"] == theirs["target_calls"]
