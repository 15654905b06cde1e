"""A first-time user: every command of the README, as the page has it, in a fresh clone, on tiny data and models."""

import gzip
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2
import pytest

from conftest import ROOT, SMALL, save_encoder

README = (ROOT / "README.md").read_text()

# What cannot be run here, and why.
LEFT_OUT = {
    "bash data/download.sh beauty games": "the internet; tests/test_download.py has a server of its own",
    "recommend_ray.sh": "Ray, which is not installed; tests/atspeed/test_recommend_ray.py runs it where it is",
    "bash script/compare_beamsd.sh": "a clone of the released BeamSD, and an environment with its transformers",
    "bash script/specgr_quickstart.sh": "eight minutes; tests/specgr/test_quickstart.py runs it",
    "bash script/test.sh": "the tests themselves, of which this is one",
}

# What a user has of their own, and where the page leaves it to them.
OWN = {
    "/path/to/llama-7b": "model/target", "/path/to/llama-68m": "model/draft", "ENCODER=…": "ENCODER=model/encoder",
    "/path/to/it": "elsewhere/mine/target", "TARGET_BASE=…": "TARGET_BASE=model/target",
    "DRAFT_BASE=…": "DRAFT_BASE=model/draft", "--target_model …": "--target_model output/quickstart/toy/target",
    "--output …": "--output hub", " --push me/it": "",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """How a command is run, and what it is to leave."""

    leaves: str = ""  # a glob
    says: str = ""
    flags: str = ""
    before: str = ""  # a command that makes what the user has
    variables: dict[str, str] = field(default_factory=dict)


TRAINED = {"OUTPUT_DIR": "output/quickstart"}
FEW = {"RUN_BEAM_SIZES": "1,5", "DRAFT_BEAM_SIZE": "12"}
RUNS = {
    "quickstart.sh": Run("output/quickstart/toy/results/draft-AtSpeedSModel/*/results.png", "lists identical for all"),
    "finetune_llama.sh": Run("output/beauty/target/facts.json", variables=SMALL),
    "generate_teacher_data.sh": Run("output/beauty/train_teacher_data/facts.json", variables=SMALL),
    "train.sh": Run("output/beauty/draft-AtSpeedSModel/facts.json", variables=SMALL),
    "inference.sh": Run(
        "output/beauty/results/*/*/recommendations.jsonl", "lists identical", "--max_users 8", variables=FEW
    ),
    "process_data.sh": Run("data/mine/sequential_test.txt"),
    "build_index.sh": Run("data/mine/mine.rq-vae.json", variables={"EPOCHS": "2", "CODEBOOKS": "8,8,8,8"}),
    "atspeed inspect": Run("output/mine/data.html", "written to"),
    "adopt.sh": Run(
        "output/mine/target/facts.json",
        before="DATASET=mine OUTPUT_DIR=elsewhere TARGET_BASE=model/target bash script/finetune_llama.sh && "
        "rm elsewhere/mine/target/facts.json",
        variables=SMALL,
    ),
    "recommend.sh": Run("lists/shard-*.parquet", variables=TRAINED),
    "reproduce.sh": Run(says="5/5 one table", variables={"DRY_RUN": "true"}),
    "sweep.sh": Run("output/beauty/sweep/*/*.png", variables=FEW | {"TEST_USERS": "4"}),
    "benchmark.sh": Run(
        "output/quickstart/toy/benchmark/*/*.png",
        variables=TRAINED | {"RUN_BEAM_SIZES": "5", "BATCH_SIZES": "1", "REQUESTS": "3"},
    ),
    "quality.sh": Run("output/quickstart/toy/quality/*/quality.md", "SASRec", variables=TRAINED),
    "atspeed export": Run("hub/README.md"),
    "gpu_check.sh": Run("output/gpu_check.md", flags="--device cpu --small true"),
    "load.sh": Run("output/quickstart/toy/load/*", variables=TRAINED | {"CLIENTS": "1,4", "DURATION": "2", "K": "5"}),
    "serve.sh": Run(variables=TRAINED),
}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def in_blocks():
    """The commands of the fenced blocks, each with what its block and those before have set."""
    sourced = exported = ""
    for block in blocks("bash"):
        exported = ""
        for line in block.splitlines():
            command = line.split("  #")[0].strip()
            if command.startswith("source "):
                sourced += command + "\n"
            elif command.startswith("export "):
                exported += command + "\n"
            elif command:
                yield command, sourced + exported
    for command in in_table():
        yield command, sourced


def in_table():
    """The commands of the table "I want to …"."""
    (table,) = re.findall(r"^## I want to …\n(.*?)^(?:##|```)", README, re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`]+)`", table):
        if re.search(r"\.sh$|^atspeed ", code):
            yield code


COMMANDS = list(in_blocks())


def how(command):
    """Its row of RUNS; None where there is none, or several."""
    rows = [run for name, run in RUNS.items() if re.search(rf"(^|/){re.escape(name)}\b", command)]
    return rows[0] if len(rows) == 1 else None


def test_every_command_is_run_or_named_with_the_reason():
    named = [command for command, _ in COMMANDS]
    assert set(LEFT_OUT) <= set(named), "LEFT_OUT names what the README no longer has"
    for command in named:
        assert (how(command) is None) == (command in LEFT_OUT), f"give {command} a row in RUNS, or in LEFT_OUT"
    assert {name for name in RUNS for command in named if name in command} == set(RUNS)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A fresh clone, an environment as setup.sh leaves it, and what a user brings along. The toy is a smaller one."""
    folder = tmp_path_factory.mktemp("first") / "atspeed"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    link_environment(folder)
    shutil.rmtree(folder / "data/toy")
    for name in ("toy", "beauty"):
        shell(folder, f".venv/bin/atspeed make-toy --output data/{name} --n_items 300 --n_users 600")
    for name, layers in (("target", 2), ("draft", 1)):
        shell(folder, f".venv/bin/atspeed init-model --output model/{name} --shape micro --layers {layers}")
    save_encoder(folder / "model/encoder")
    write_raw_files(folder)
    return folder


def link_environment(folder):
    """A .venv that holds the packages of the one that runs this test, so that setup.sh finds its work done."""
    venv = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    there = [path for path in sys.path if path.endswith("-packages")]
    (packages / "programs.pth").write_text("\n".join([str(folder / "code"), *there]) + "\n")
    start = venv / "bin/atspeed"
    start.write_text(f"#!{venv}/bin/python\nfrom atspeed.__main__ import main\n\nmain()\n")
    start.chmod(0o755)
    locked = "".join((folder / name).read_text() for name in ("requirements.txt", "constraints.txt"))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (venv / "installed").write_text(f"Python {version}, atspeed of {folder}/code\n{locked}")


def write_raw_files(folder):
    """reviews.json.gz and meta.json.gz, as Amazon has them, and users.jsonl."""
    chance, reviews = random.Random(0), []
    for user in range(60):
        start = chance.randrange(15_000, 15_300)
        for place, item in enumerate(chance.sample(range(40), 10)):
            reviews.append({"reviewerID": f"U{user}", "asin": f"B{item:03}", "overall": 5.0,
                            "unixReviewTime": 86_400 * (start + 60 * place)})  # fmt: skip
    meta = [{"asin": f"B{item:03}", "title": f"{chance.choice(['red', 'mild'])} Soap {item}"} for item in range(40)]
    for name, records in (("reviews", reviews), ("meta", meta)):
        with gzip.open(folder / f"{name}.json.gz", "wt") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    users = [{"user": f"u{i}", "history": [i, i + 7]} for i in range(5)]
    (folder / "users.jsonl").write_text("".join(json.dumps(user) + "\n" for user in users))


def surroundings(**variables):
    """The environment of a terminal that knows nothing of this test's."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHON", "PYTHONPATH")} | variables


def shell(folder, command, **variables):
    done = subprocess.run(
        ["bash", "-ec", command], cwd=folder, env=surroundings(**variables), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


def filled(command):
    """The command, with what is the user's own."""
    for left_open, own in OWN.items():
        command = command.replace(left_open, own)
    assert "…" not in command, f"OWN says nothing of what {command} leaves open"
    return command


@contextmanager
def service(folder, command, **variables):
    """The address of a service that the command has started; Ctrl-C ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    process = subprocess.Popen(
        ["bash", "-ec", f"exec {command}"], cwd=folder, env=surroundings(**variables, PORT=port),
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(process, url)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0


def wait_until_healthy(process, url):
    for _ in range(600):
        time.sleep(0.2)
        assert process.poll() is None, "the service has ended"
        try:
            if httpx2.get(f"{url}/health").status_code == 200:
                return
        except httpx2.TransportError:
            continue
    raise AssertionError("the service does not answer")


RUNNABLE = [(command, before) for command, before in COMMANDS if command not in LEFT_OUT]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "before"), [each for each in RUNNABLE if "serve.sh" not in each[0]])
def test_a_command_of_the_readme_leaves_what_the_page_says(clone, command, before):
    run, command = how(command), filled(command)
    if run.before:
        shell(clone, run.before, **run.variables)
    with asked(clone, command) as url:
        said = shell(clone, f"{before}{command} {run.flags}", **run.variables, **url)
    assert run.says in said
    assert not run.leaves or list(clone.glob(run.leaves)), f"{command} left no {run.leaves}"


@contextmanager
def asked(folder, command):
    """The service that load.sh asks, as its variable; nothing for other commands."""
    if "load.sh" in command:
        with service(folder, "env bash script/serve.sh", **TRAINED) as url:
            yield {"URL": url}
    else:
        yield {}


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command, _ in RUNNABLE if "serve.sh" in command])
def test_the_service_has_a_page_and_gives_lists(clone, command):
    assert "PORT=${PORT:-8000}" in (clone / "script/serve.sh").read_text(), "the README names 8000"
    with service(clone, f"env {command}", **({} if "OUTPUT_DIR=" in command else TRAINED)) as url:
        assert "<html" in httpx2.get(url).text
        answer = httpx2.post(f"{url}/recommend", json={"history": [12, 7], "k": 5}).json()
        assert len(answer["items"]) == 5


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"), ids=["recommend", "beamsd"])
def test_a_python_block_runs(clone, code):
    ends = "\nprint(lists[0])\n" if "lists" in code else "\nprint(outputs.target_calls)\n"
    (clone / "block.py").write_text(code + ends)
    assert re.search(r"scores=\[-|tensor\(\[", shell(clone, ".venv/bin/python block.py"))
