"""The first thing that a user runs, whole: installation, four stages, the checked table."""

import os
import subprocess
import time

import pytest

from conftest import ROOT


@pytest.mark.slow
def test_quickstart_ends_with_identical_lists_for_every_test_user_within_five_minutes(tmp_path):
    subprocess.run(["bash", ROOT / "script" / "setup.sh"], check=True)
    start = time.monotonic()
    unlimited = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "PYTHON")}
    output = subprocess.run(
        ["bash", ROOT / "script" / "quickstart.sh"], env=unlimited | {"OUTPUT_DIR": str(tmp_path)}, check=True,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ).stdout  # fmt: skip
    assert time.monotonic() - start < 300
    users = sum(1 for row in (ROOT / "data/toy/sequential_test.txt").read_text().splitlines() if len(row.split()) > 1)
    assert f"{4 * users} of {4 * users} lists identical for all methods; 0 differ" in output
    (plot,) = (tmp_path / "toy/results/draft-AtSpeedSModel").glob("*/results.png")
    assert plot.stat().st_size > 10_000
