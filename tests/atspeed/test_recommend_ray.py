"""`recommend_ray.sh`: a real Ray on this machine writes the files that `recommend.sh` writes.

Ray is not in the environment of setup.sh; where it is: `python -m pytest -m slow tests/atspeed/test_recommend_ray.py`.
"""

import json
import os
import signal
import subprocess
import time

import pandas as pd
import pytest

from conftest import environment, script, succeed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not __import__("importlib.util").util.find_spec("ray"), reason="no Ray"),
]
USERS = 3000


@pytest.fixture(scope="module")
def world(tmp_path_factory, save_random_target):
    folder = tmp_path_factory.mktemp("ray")
    save_random_target(folder)
    with (folder / "users.jsonl").open("w") as file:
        for user in range(USERS):
            file.write(json.dumps({"user": user, "history": [user % 300, 7 * user % 300]}) + "\n")
    return folder


def variables(folder, output):
    return {
        "TARGET_MODEL": str(folder / "target"), "INPUT": str(folder / "users.jsonl"), "K": "5", "OUTPUT": str(output),
    }  # fmt: skip


def read(folder):
    return pd.concat(pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))).reset_index(drop=True)


def test_two_actors_write_what_one_process_writes(world):
    succeed("recommend", world, "--shard_size", "256", **variables(world, world / "one"))
    output, code = script("recommend_ray", world, "--shard_size", "256", **variables(world, world / "ray"), ACTORS="2")
    assert code == 0, output
    assert f"{USERS} users, 5 items each, 12 files" in output
    pd.testing.assert_frame_equal(read(world / "ray"), read(world / "one"))
    assert read(world / "ray")["user"].tolist() == list(range(USERS))
    assert "done already" in succeed("recommend_ray", world, "--shard_size", "256", **variables(world, world / "one"))


def test_what_ray_has_begun_is_finished_without_it(world):
    where = world / "begun"
    process = subprocess.Popen(
        ["bash", "script/recommend_ray.sh", "--shard_size", "64"], env=environment(world, **variables(world, where)),
        stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 240
    while len(list(where.glob("*.parquet"))) < 3 and time.monotonic() < end and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(["pkill", "-9", "-f", "raylet"], check=False)  # which outlives its driver for a while
    assert 3 <= len(list(where.glob("*.parquet"))) < 47
    assert "resumed" in succeed("recommend", world, "--shard_size", "64", **variables(world, where))
    assert read(where)["user"].tolist() == list(range(USERS))


def test_a_cluster_that_is_not_there_is_named(world):
    output, code = script("recommend_ray", world, **variables(world, world / "none"), ADDRESS="127.0.0.1:1")
    assert (code, "--address 127.0.0.1:1: no cluster there" in output) == (2, True), output
