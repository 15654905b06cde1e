"""The README does what it says."""

import re

from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_library_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(code, names)
    result = names["result"]
    assert result.sequences.shape == (2, 3, 4)
    assert {tuple(s) for s in result.sequences[0].tolist()} == {(10, 20, 30, 40), (10, 20, 31, 41), (11, 21, 30, 40)}


def test_every_link_and_every_named_file_is_there():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
    for name in re.findall(r"\b(?:script|data|code)/[\w./]+\.(?:sh|py|md)\b", README):
        assert (ROOT / name).exists(), name


def test_every_variable_of_the_table_is_one_of_the_scripts():
    scripts = "".join(path.read_text() for path in (ROOT / "script").glob("*.sh"))
    (table,) = re.findall(r"\| variable \|.*?\n\n", README, re.DOTALL)
    for row in table.strip().splitlines()[2:]:
        for name in re.findall(r"`(\w+)`", row.split("|")[1]):
            assert re.search(rf"\b{name}=\$\{{{name}", scripts) or f"{{{name}:-" in scripts, name
