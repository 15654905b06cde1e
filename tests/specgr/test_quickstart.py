"""SpecGR's first promise, whole: from data to the table, new items recommended, and the old ones about as well."""

import os
import subprocess
import sys
import time

import pandas as pd
import pytest

from conftest import ROOT


@pytest.mark.slow
def test_quickstart_recommends_new_items_within_eight_minutes(tmp_path):
    start = time.monotonic()
    unlimited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    own = {"FOLDER": str(tmp_path / "q"), "LOG_DIR": str(tmp_path / "log"), "PYTHON": sys.executable}
    subprocess.run(["bash", ROOT / "script/specgr_quickstart.sh"], env=unlimited | own, check=True)
    assert time.monotonic() - start < 480
    table = pd.read_csv(tmp_path / "q/toy/results/test/results.csv", index_col="method")
    unseen, known = table["Recall@50 unseen"], table["Recall@50 in-sample"]
    assert unseen["TIGER"] < 0.1
    for method in ("SpecGR_Aux", "SpecGR++"):
        assert unseen[method] > 5 * unseen["TIGER"]
        assert known[method] > 0.9 * known["TIGER"]
