"""The README does what it says."""

import re

import torch

from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_library_example_runs():
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "from beamsd" in code]
    names = {}
    exec(code, names)
    outputs = names["outputs"]
    expected = names["target"].generate(
        **names["inputs"], num_beams=3, num_return_sequences=3, max_new_tokens=4, do_sample=False,
        return_dict_in_generate=True, output_scores=True, prefix_allowed_tokens_fn=allowed,
    )  # fmt: skip
    assert torch.equal(outputs.sequences, expected.sequences)
    torch.testing.assert_close(outputs.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=1e-4)
    assert torch.equal(outputs.beam_indices, expected.beam_indices)


def allowed(_, sequence):
    items = [[10, 20, 30, 40], [10, 20, 31, 41], [11, 21, 30, 40]]
    said = sequence[3:].tolist()
    return sorted({item[len(said)] for item in items if item[: len(said)] == said}) or [0]


def test_every_link_and_every_named_file_is_there():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
    for name in re.findall(r"\b(?:script|data|code)/[\w./]+\.(?:sh|py|md)\b", README):
        assert (ROOT / name).exists(), name


def test_it_is_short_enough_to_be_read():
    assert len(README.split()) < 1200


def test_every_variable_of_the_page_is_one_of_the_scripts():
    scripts = "".join(path.read_text() for path in (ROOT / "script").glob("*.sh"))
    page = (ROOT / "docs/variables.md").read_text()
    for row in re.findall(r"^\| `.*", page, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", row.split("|")[1]):
            assert (
                re.search(rf"\b{name}=\$\{{{name}", scripts)
                or f"{{{name}:-" in scripts
                or f"default {name} " in scripts
            ), name
