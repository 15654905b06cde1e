"""The variables of the scripts: which are read, by what name, and what is refused. No stage is run."""

import os
import subprocess
import sys

import pytest

from conftest import ROOT


@pytest.fixture
def flags(tmp_path):
    """Runs a script; gives (exit code, what it said on stderr, the flags that its stage was started with)."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" = -IS ] && exec {sys.executable} "$@"\nshift 3\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)

    def run(script, *arguments, **variables):
        own = {"PYTHON": str(python), "LOG_DIR": str(tmp_path / "log"), "OUTPUT_DIR": str(tmp_path / "output")}
        done = subprocess.run(
            ["bash", ROOT / "script" / f"{script}.sh", *arguments], env=os.environ | own | variables, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        said = done.stdout.splitlines()
        return done.returncode, done.stderr, dict(zip(said[::2], said[1::2], strict=True))

    return run


OLD_NAMES = {
    "inference": ("run_beam_sizes", "3,4"),
    "train": ("r_student", "0.25"),
    "compare": ("run_beam_sizes", "3,4"),
    "benchmark": ("run_beam_sizes", "3,4"),
}


BASES = {"finetune_llama": "TARGET_BASE", "train": "DRAFT_BASE"}


@pytest.mark.parametrize("script", BASES)
def test_the_model_that_a_stage_starts_from_has_a_name_of_its_own(flags, script):
    for name in (BASES[script], "BASE_MODEL"):
        code, error, given = flags(script, **{name: "model/mine"})
        assert (code, error, given["--base_model"]) == (0, "", "model/mine")
    code, error, _ = flags(script, **{BASES[script]: "model/mine", "BASE_MODEL": "model/other"})
    said = f"error: BASE_MODEL=model/other and {BASES[script]}=model/mine are one variable; set {BASES[script]} alone\n"
    assert (code, error) == (2, said)


def test_one_base_model_for_two_is_refused(flags):
    code, error, _ = flags("reproduce", BASE_MODEL="model/mine")
    assert (code, error.startswith("error: BASE_MODEL=model/mine: which one? set TARGET_BASE, DRAFT_BASE or")) == (
        2,
        True,
    )


@pytest.mark.parametrize("script", ["finetune_llama", "inference", "reproduce", "process_data"])
def test_an_empty_data_set_is_not_the_toy(flags, script):
    code, error, _ = flags(script, DATASET="")
    assert (code, error) == (2, "error: DATASET= is empty; name a data set, or unset it\n")


@pytest.mark.parametrize("script", ["generate_teacher_data", "train", "inference", "compare"])
def test_an_empty_target_is_passed_on_to_be_refused(flags, script):
    assert flags(script, TARGET_MODEL="")[2]["--target_model"] == ""


@pytest.mark.parametrize("script", OLD_NAMES)
def test_the_names_of_the_release_are_read_in_lower_case_too(flags, script):
    name, value = OLD_NAMES[script]
    for variables in ({name: value}, {name.upper(): value}, {name: value, name.upper(): value}):
        code, error, given = flags(script, **variables)
        assert (code, error, given[f"--{name}"]) == (0, "", value)
    code, error, given = flags(script, **{name: value, name.upper(): "9"})
    said = f"error: {name}={value} and {name.upper()}=9 are one variable; set {name.upper()} alone\n"
    assert (code, error, given) == (2, said, {})


MISTYPED = {
    "DATSET": "DATASET", "Dataset": "DATASET", "dataset": "DATASET", "RUN_BEAM_SIZE": "RUN_BEAM_SIZES",
    "EPOCH": "EPOCHS", "ALHPA": "ALPHA", "wd": "WD", "TOPK": "TOP_K", "BASE_MODLE": "BASE_MODEL",
    "TEMPRATURE": "TEMPERATURE", "MODELCLASS": "MODEL_CLASS", "Run_Beam_Sizes": "RUN_BEAM_SIZES",
}  # fmt: skip


@pytest.mark.parametrize("name", MISTYPED)
def test_a_variable_that_is_nearly_one_of_ours_is_refused_by_name(flags, tmp_path, name):
    code, error, given = flags("train", **{name: "3"})
    said = (
        f"error: {name}=3: the scripts have no such variable; did you mean {MISTYPED[name]}? (unset {name}, if it is "
    )
    assert (code, given) == (2, {})
    assert error == said + "another program's)\n"
    assert not (tmp_path / "log").exists()


ELSEWHERE = """
BASH_ENV CI CLUSTER_NAME COLORTERM COLUMNS CONDA_DEFAULT_ENV CONDA_EXE CONDA_PREFIX CONDA_PYTHON_EXE CUDA_DEVICE_ORDER
CUDA_HOME CUDA_PATH CUDA_VISIBLE_DEVICES DBUS_SESSION_BUS_ADDRESS DEBIAN_FRONTEND DISPLAY EDITOR ENV EPOCHREALTIME
GITHUB_ACTION GITHUB_ACTIONS GITHUB_ACTOR GITHUB_BASE_REF GITHUB_ENV GITHUB_OUTPUT GITHUB_PATH GITHUB_REF GITHUB_SHA
GITHUB_TOKEN GITHUB_WORKSPACE GPG_AGENT_INFO HF_DATASETS_CACHE HF_ENDPOINT HF_HOME HF_HUB_CACHE HF_HUB_OFFLINE HF_TOKEN
HISTCONTROL HISTFILE HISTSIZE HOME HOSTNAME HOSTTYPE HTTPS_PROXY HTTP_PROXY JOB_ID JPY_PARENT_PID KMP_AFFINITY
KUBERNETES_PORT LANG LANGUAGE LC_ALL LD_LIBRARY_PATH LESSOPEN LINES LOCAL_RANK LOGDIR LOGNAME LS_COLORS MAIL MANPATH
MASTER_ADDR MASTER_PORT MKL_NUM_THREADS MODULEPATH NCCL_DEBUG NCCL_SOCKET_IFNAME NODE_RANK NO_COLOR NO_PROXY
NVIDIA_VISIBLE_DEVICES NVIDIA_DRIVER_CAPABILITIES OLDPWD OPENBLAS_NUM_THREADS OSTYPE PAGER PERL5LIB PIP_INDEX_URL
PKG_CONFIG_PATH POETRY_ACTIVE PROMPT_COMMAND PS1 PWD PYENV_ROOT PYTEST_CURRENT_TEST PYTHON3 PYTHONDONTWRITEBYTECODE
PYTHONHASHSEED PYTHONHOME PYTHONPATH PYTHONSTARTUP PYTHONUNBUFFERED PYTORCH_CUDA_ALLOC_CONF RANK RUNNER_OS RUNNER_TEMP
SHELL SHLVL SINGULARITY_NAME SLURM_ARRAY_TASK_ID SLURM_CPUS_PER_TASK SLURM_GPUS SLURM_JOB_ID SLURM_JOB_NAME
SLURM_JOB_NODELIST SLURM_LOCALID SLURM_NNODES SLURM_NODEID SLURM_NTASKS SLURM_PROCID SLURM_STEP_ID SLURM_SUBMIT_DIR
SOURCE_DATE_EPOCH SSH_AUTH_SOCK SSH_CLIENT SSH_CONNECTION SSH_TTY STAGE TERM TERM_PROGRAM TF_CPP_MIN_LOG_LEVEL
TMPDIR TOKENIZERS_PARALLELISM TORCH_HOME TRANSFORMERS_CACHE TZ USER USERNAME UV_CACHE_DIR VIRTUAL_ENV VISUAL
VSCODE_PID WANDB_API_KEY WANDB_DIR WANDB_ENTITY WANDB_MODE WANDB_NAME WANDB_PROJECT WINDOWID WORLD_SIZE
XDG_CONFIG_HOME XDG_DATA_DIRS XDG_RUNTIME_DIR XDG_SESSION_ID ZSH _CE_CONDA all_proxy http_proxy https_proxy no_proxy
"""


def test_variables_of_other_programs_are_let_pass(flags):
    own = (
        "PYTHONPATH",
        "PYTHONHOME",
        "BASH_ENV",
        "SHELL",
        "HOME",
        "PWD",
        "SHLVL",
        "LC_ALL",
        "LANG",
    )  # of the test itself
    code, error, given = flags("train", **{name: "1" for name in ELSEWHERE.split() if name not in own})
    assert (code, error, given.get("--alpha")) == (0, "", "0.7")


def test_a_python_that_is_not_there_is_named(flags):
    code, error, _ = flags("train", PYTHON="/nope")
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("error: PYTHON=/nope: not there; set PYTHON=")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("NUM_PROCESSES", "abc", "must be a whole number of at least 1"),
        ("NUM_PROCESSES", "0", "must be a whole number of at least 1"),
        ("NUM_MACHINES", "-1", "must be a whole number of at least 1"),
        ("MACHINE_RANK", "two", "must be a whole number below NUM_MACHINES=1"),
        ("MACHINE_RANK", "1", "must be a whole number below NUM_MACHINES=1"),
        ("MAIN_PROCESS_PORT", "http", "must be a whole number of at least 1"),
    ],
)
def test_processes_and_machines_are_counted_in_whole_numbers(flags, name, value, said):
    code, error, _ = flags("train", **{name: value})
    assert (code, error) == (2, f"error: {name}={value}: {said}\n")


@pytest.mark.parametrize(
    ("variables", "processes", "seen"),
    [
        ({}, "3", None),
        ({"NUM_PROCESSES": "1"}, None, "0"),
        ({"NUM_PROCESSES": "1", "CUDA_VISIBLE_DEVICES": "2,1"}, None, "2"),
        ({"CUDA_VISIBLE_DEVICES": "2,1"}, "2", "2,1"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-6a"}, None, "GPU-6a"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, None, "-1"),
        ({"CUDA_VISIBLE_DEVICES": ""}, None, ""),
    ],
)
def test_a_process_has_one_gpu_of_those_that_are_to_be_seen(tmp_path, variables, processes, seen):
    """On a machine of three. processes: that accelerate is to start; None for Python alone."""
    lists, python = tmp_path / "nvidia-smi", tmp_path / "python"
    lists.write_text("#!/bin/sh\nprintf 'GPU %s\\n' 0 1 2\n")
    python.write_text(f'#!/bin/sh\n[ "$1" = -IS ] && exec {sys.executable} "$@"\necho "$CUDA_VISIBLE_DEVICES|$*"\n')
    for path in (lists, python):
        path.chmod(0o755)
    hidden = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(python), "LOG_DIR": str(tmp_path / "log")}
    done = subprocess.run(
        ["bash", ROOT / "script/train.sh"], env=hidden | own | variables, text=True, capture_output=True, check=True
    )
    there, _, command = done.stdout.partition("|")
    assert there == (seen or "")
    assert (f"--num_processes {processes} " in command) if processes else ("accelerate" not in command)
