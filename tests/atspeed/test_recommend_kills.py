"""`recommend.sh`, killed again and again: no user is lost, and none is there twice."""

import json
import os
import random
import signal
import subprocess
import time

import pandas as pd
import pytest

from conftest import environment, succeed

USERS, KILLS = 20_000, 20


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_killed_at_twenty_random_moments_the_lists_are_those_of_a_run_that_was_not(
    tmp_path, save_random_target, processes
):
    save_random_target(tmp_path)
    chance = random.Random(int(processes))
    with (tmp_path / "users.jsonl").open("w") as file:
        for user in range(USERS):
            history = [chance.randrange(300) for _ in range(chance.randint(1, 8))]
            file.write(json.dumps({"user": f"u{user}", "history": history}) + "\n")
    variables = {
        "TARGET_MODEL": str(tmp_path / "target"), "INPUT": str(tmp_path / "users.jsonl"), "K": "5",
        "NUM_PROCESSES": processes,
    }  # fmt: skip
    flags, cut, kills, done = ("--shard_size", "512"), tmp_path / "cut", 0, []
    while kills < KILLS:
        process = subprocess.Popen(
            ["bash", "script/recommend.sh", *flags], env=environment(tmp_path, **variables, OUTPUT=str(cut)),
            stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        time.sleep(chance.uniform(0.2, 9))
        if process.poll() is not None:  # done: begin anew, and kill that
            assert process.returncode == 0
            done.append(kills)
            assert_whole(cut)
            for path in cut.iterdir():
                path.unlink()
            continue
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    succeed("recommend", tmp_path, *flags, **variables, OUTPUT=str(cut))
    succeed("recommend", tmp_path, *flags, **variables, OUTPUT=str(tmp_path / "whole"))
    pd.testing.assert_frame_equal(assert_whole(cut), assert_whole(tmp_path / "whole"))
    assert not [path for path in cut.iterdir() if path.name.startswith(".")], "nothing half-written is left"
    print(f"{processes} processes: {kills} kills, whole after {[*done, kills]} of them")


def assert_whole(folder):
    lists = pd.concat(pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))).reset_index(drop=True)
    assert lists["user"].tolist() == [f"u{user}" for user in range(USERS)]
    return lists
