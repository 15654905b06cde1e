"""The pages say what the code says."""

import re
import subprocess
import sys
from importlib.util import find_spec
from xml.etree import ElementTree

import pytest

from conftest import ROOT


def run(*command):
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env={"PYTHONPATH": "code:docs", "OMP_NUM_THREADS": "1"}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip


def test_the_api_page_is_that_of_the_docstrings():
    done = run("-c", "import make_api; print(make_api.api(), end='')")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (ROOT / "docs" / "api.md").read_text(), "run python docs/make_api.py"


def test_links_between_pages_lead_somewhere():
    code = (
        "import make_site as site; places = site.pages(); "
        "[site.linked(page.read_text(), page, places) for page in places if page.suffix == '.md']; print(len(places))"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="no mkdocs: pip install -c constraints.txt mkdocs")
def test_the_site_builds_and_its_anchors_are_there(tmp_path):
    done = run("docs/make_site.py", str(tmp_path / "site"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AtSpeed" in (tmp_path / "site/index.html").read_text()


def test_the_tree_of_a_request_is_drawn(tmp_path):
    done = run("-m", "atspeed", "show-tree", "--output", str(tmp_path / "tree.svg"))
    assert done.returncode == 0, done.stderr
    words = "".join(ElementTree.parse(tmp_path / "tree.svg").getroot().itertext())
    for kind in ("accepted and built upon", "added by the target", "not built upon", "prompt", "target calls"):
        assert kind in words
    assert len(re.findall(r"<d_\d>", words)) == 3, "the last level holds the three beams"


def test_a_picture_that_is_there_is_not_replaced(tmp_path):
    (tmp_path / "tree.svg").write_text("mine")
    done = run("-m", "atspeed", "show-tree", "--output", str(tmp_path / "tree.svg"))
    assert done.returncode == 2
    assert "tree.svg: is there already; choose another --output, or pass --overwrite" in done.stderr
    assert (tmp_path / "tree.svg").read_text() == "mine"


@pytest.mark.parametrize("name", ["tree.doc", "tree"])
def test_a_picture_of_an_unknown_kind_is_refused_before_any_work(name, tmp_path):
    done = run("-m", "atspeed", "show-tree", "--output", str(tmp_path / name))
    assert done.returncode != 0
    assert f"{name} must end in .svg, .png, .pdf" in done.stderr
    assert not list(tmp_path.iterdir())
