"""The wheel, installed in an empty environment: what a user of `pip install atspeed` has."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from conftest import ROOT


@pytest.mark.slow
def test_the_wheel_decodes_where_the_source_is_not(tmp_path):
    """torch and transformers are those of this environment; atspeed, its files and its command, the wheel's alone."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    source = tmp_path / "source"  # pip leaves its build in the folder of the source
    shutil.copytree(ROOT / "code", source / "code", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source)
    (wheel,) = tmp_path.glob("atspeed-*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    here = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "others.pth").write_text("\n".join({*here, sysconfig.get_path("purelib")}) + "\n")
    where = run(python, "-c", "import atspeed, beamsd; print(atspeed.__file__, beamsd.__file__)")
    assert where.count(str(packages)) == 2
    (code,) = [
        c for c in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL) if "beamsd" in c
    ]
    assert "tensor([" in run(python, "-c", code + "\nprint(outputs.target_calls)")
    atspeed = tmp_path / "env/bin/atspeed"
    assert re.fullmatch(r"atspeed \d+\.\d+\.\d+\n", run(atspeed, "--version"))
    assert "--batch_wait FLOAT (default: 0.005)\n      seconds that" in run(atspeed, "serve", "--help")
    run(atspeed, "make-toy", "--output", tmp_path / "toy", "--n_items", "300", "--n_users", "60")
    page = run(
        python, "-c", "from importlib.resources import files; print(files('atspeed.serve') / 'page.html')"
    ).strip()
    assert "<title>" in Path(page).read_text()
