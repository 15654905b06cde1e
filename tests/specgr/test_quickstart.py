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
    unseen, known = table["Recall@50_unseen"], table[["Recall@50_in_sample", "NDCG@50_in_sample"]]
    assert max(unseen["TIGER"], unseen["TIGER constrained"]) < 0.1  # 50 of 1,500 items at random: 0.03
    for method in ("SpecGR_Aux", "SpecGR++"):
        assert unseen[method] > 0.3
        assert (known.loc[method] > 0.9 * known.loc["TIGER constrained"]).all()
