"""The environment: what script/setup.sh installs, where, and what it says where it cannot."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
import zipfile

import pytest
from packaging.requirements import Requirement

from conftest import ROOT

PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
RANGES = [
    Requirement(text) for text in re.findall(r'"([\w-]+[<>=]=[^"]+)"', (ROOT / "pyproject.toml").read_text())
    if not text.startswith("setuptools")  # builds the package
]  # fmt: skip
NOT_INSTALLED = {"mkdocs"}  # by setup.sh; nor Ray: who needs them installs them


def test_requirements_name_what_the_project_declares():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert "-c constraints.txt" in lines
    declared = {each.name for each in RANGES} - NOT_INSTALLED
    assert sorted(line for line in lines if re.match(r"\w", line)) == sorted(declared)


@pytest.mark.parametrize("declared", RANGES, ids=lambda each: each.name)
def test_the_lock_is_exact_and_within_the_ranges(declared):
    pins = [pin for pin in PINS if pin.name == declared.name]
    assert pins
    for pin in pins:
        (only,) = pin.specifier
        assert only.operator == "=="
        assert declared.specifier.contains(only.version), f"{pin}: run bash script/lock.sh"


def wheel(folder, name, version, needs=()):
    """A package of one module, as pip takes it from `folder`."""
    info, files = f"{name}-{version}.dist-info", {f"{name}.py": f"version = {version!r}\n"}
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {each}\n" for each in needs
    )
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


@pytest.fixture
def clone(tmp_path):
    """The scripts in a folder of their own, and an index of three small packages."""
    (tmp_path / "clone/script").mkdir(parents=True)
    shutil.copy(ROOT / "script/setup.sh", tmp_path / "clone/script")
    (tmp_path / "clone/pyproject.toml").write_text('dependencies = ["torch>=2.11,<2.15"]\n')
    (tmp_path / "clone/requirements.txt").write_text("-c constraints.txt\ntorch\nfirst\n")
    (tmp_path / "clone/constraints.txt").write_text("first==1.0\nsecond==1.0\nsetuptools==84.2.1\ntorch==2.13.0\n")
    for name, needs in (("first", ["second"]), ("second", []), ("torch", [])):
        for version in ("2.13.0", "2.14.0") if name == "torch" else ("1.0", "2.0"):
            wheel(tmp_path / "index", name, version, needs)
    return tmp_path / "clone"


def start(clone, **variables):
    unset = ("PYTHON", "VIRTUAL_ENV", "PIP_CONSTRAINT", "PYTHONPATH")
    own = {
        "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(clone.parent / "index"),
        "PIP_NO_CACHE_DIR": "1", "PATH": f"{sys.base_prefix}/bin:{os.environ['PATH']}",
    }  # fmt: skip
    variables = {name: value for name, value in os.environ.items() if name not in unset} | own | variables
    return subprocess.Popen(
        ["bash", "script/setup.sh"], cwd=clone, env=variables, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
    )  # fmt: skip


def run(clone, **variables):
    process = start(clone, **variables)
    output, error = process.communicate(timeout=120)
    return process.returncode, output, error


def installed(clone, module):
    command = [clone / ".venv/bin/python", "-c", f"import {module}; print({module}.version, {module}.__file__)"]
    version, path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return version, path.startswith(str(clone))


def test_it_installs_the_lock_mends_what_was_cut_off_and_then_does_nothing(clone):
    code, output, error = run(clone)
    assert (code, error) == (0, "")
    assert output.splitlines()[-1] == "setup: done"
    assert [installed(clone, name) for name in ("first", "second", "torch")] == [
        ("1.0", True), ("1.0", True), ("2.13.0", True)
    ]  # fmt: skip
    assert run(clone) == (0, "", "")

    shutil.rmtree(clone / ".venv/bin")  # as when the Python that it was made with is gone
    assert run(clone, PIP_TARGET=str(clone / "elsewhere"))[0] == 0
    assert installed(clone, "first") == ("1.0", True)
    assert not (clone / "elsewhere").exists()

    (packages,) = clone.glob(".venv/lib/python*/site-packages")
    (clone / ".venv/installed").unlink()
    (packages / "second.py").unlink()  # as a killed pip leaves it: metadata first, modules later, INSTALLER last
    record = packages / "second-1.0.dist-info/RECORD"
    record.write_text("".join(line for line in record.open() if "INSTALLER" not in line))
    assert run(clone)[0] == 0
    assert installed(clone, "second") == ("1.0", True)

    other = clone.parent / "python3.9"
    other.write_text("#!/bin/sh\necho 3.99\n")
    other.chmod(0o755)
    code, output, error = run(clone, PYTHON=str(other))
    assert (code, output) == (2, "")
    assert re.fullmatch(r"error: .*\.venv: has Python 3\.\d+, and PYTHON=.* is 3\.99; .*remove \.venv .*\n", error)


@pytest.mark.parametrize(("version", "kept"), [("2.12.1", True), ("2.9.0", False)])
def test_a_torch_that_python_has_is_kept_if_its_version_will_do(version, kept, clone):
    wheel(clone.parent / "old", "torch", version, ["setuptools<82"])  # as those of 2.11 and 2.12 say
    wheel(clone.parent / "old", "first", "0.5")
    wheel(clone.parent / "old", "setuptools", "81.0")
    venv.create(clone.parent / "base", with_pip=True)
    base = str(clone.parent / "base/bin/python")
    own = os.environ | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
    command = [base, "-m", "pip", "install", "-q", "--find-links", str(clone.parent / "old"), "torch", "first"]
    subprocess.run(command, check=True, env=own)
    for _ in range(2):  # again, as after an interruption
        code, output, error = run(clone, PYTHON=base)
        assert (code, error) == (0, "")
        assert (f"setup: keeps torch {version} of" in output) == kept
        assert installed(clone, "torch") == ((version, False) if kept else ("2.13.0", True))
        assert installed(clone, "first") == ("1.0", True), "the lock goes before what else that Python has"
        (clone / ".venv/installed").unlink()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PYTHON": "/nope"}, r"PYTHON=/nope: does not run; set PYTHON=/path/to/python3, of version 3.10 or newer"),
        ({"PYTHON": "python3.9"}, r"PYTHON=.*python3.9: is Python 3.9, and 3.10 or newer is needed; .*"),
        ({"PIP_FIND_LINKS": "", "PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "1"},
         r"the package index cannot be reached; see to the network .*, then run this again, and it goes on"),
        ({"PIP_FIND_LINKS": ""}, r"the installation failed \(.*conflicting dependencies.*\); see .*setup.log"),
        ({"PYTHON": "makes nothing"}, r"the installation failed \(cannot do it\); see .*setup.log"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_line(variables, message, clone):
    if variables.get("PYTHON") in ("python3.9", "makes nothing"):
        fake = clone.parent / variables["PYTHON"]
        said = 'case $1 in -c) echo 3.11;; *) echo "cannot do it"; exit 1;; esac' if " " in fake.name else "echo 3.9"
        fake.write_text(f"#!/bin/sh\n{said}\n")
        fake.chmod(0o755)
        variables = {"PYTHON": str(fake)}
    code, _, error = run(clone, **variables)
    assert code == 2
    assert re.fullmatch(f"error: {message}\n", error)


def test_what_is_in_a_venv_of_ones_own_stays_there(clone):
    venv.create(clone / ".venv", with_pip=True)
    (packages,) = clone.glob(".venv/lib/python*/site-packages")
    (packages / "mine-1.0.dist-info").mkdir()  # by hand, so that it has no RECORD
    (packages / "mine-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    assert run(clone)[0] == 0
    assert (packages / "mine-1.0.dist-info/METADATA").exists()
    assert installed(clone, "first") == ("1.0", True)


def test_an_interruption_is_said_in_one_line(clone):
    process = start(clone)
    while not (clone / ".venv/setup.log").exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert (process.returncode, error) == (130, "error: the installation was interrupted; run it again to go on\n")
    assert run(clone)[0] == 0
