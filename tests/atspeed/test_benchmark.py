"""The benchmark, as its user starts it."""

import csv
import subprocess
import sys

import pytest
import torch

from atspeed.benchmark.memory import peak_memory
from conftest import script, succeed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The toy data, and no checkpoint."""
    folder = tmp_path_factory.mktemp("benchmark")
    subprocess.run([sys.executable, "-m", "atspeed.tools.make_toy", "--output", folder / "data" / "toy"], check=True)
    return folder


FLAGS = {"TARGET_MODEL": "", "DRAFT_MODEL": "", "SHAPE": "tiny", "REQUESTS": "3", "BATCH_SIZES": "2"}


def test_every_method_is_timed_on_random_weights_of_a_shape(folder):
    output, code = script("benchmark", folder, **FLAGS, DRAFT_SHAPE="tiny", RUN_BEAM_SIZES="1,4")
    assert code == 0, output
    (results,) = (folder / "output" / "toy" / "benchmark").iterdir()
    assert results.name.startswith("K1-4_gamma3_batch2_float32_3requests-seed0_")
    assert {path.name for path in results.iterdir()} == {f"batch-2-float32.{kind}" for kind in ("csv", "md", "png")} | {
        "facts.json", "arguments.json"
    }  # fmt: skip
    rows = list(csv.DictReader((results / "batch-2-float32.csv").open()))
    methods = {"generate", "gamma 0", "speculative", "trie", "hybrid", "auto", "relaxed", "sample"}
    assert {(row["method"], row["K"]) for row in rows} == {(method, k) for method in methods for k in ("1", "4")}
    assert all(float(row["ms"]) > 0 for row in rows)
    assert {row["requests"] for row in rows} == {"3"}
    trie = next(row for row in rows if (row["method"], row["K"]) == ("trie", "4"))
    assert float(trie["target calls"]) <= 2
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
