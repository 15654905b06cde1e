"""The lists of a checkpoint that is written down: a change of numerics, or of the random draws, shows here."""

import importlib.util
import json

import pytest

from conftest import ROOT

GOLDEN = ROOT / "tests/golden"
SPEC = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make.py")
make = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make)


@pytest.fixture(scope="module")
def found():
    return make.lists_of(*make.load())


@pytest.mark.parametrize("case", make.CASES)
def test_the_lists_are_those_that_were_written_down(found, case):
    expected = json.loads((GOLDEN / "lists.json").read_text())[case]
    assert found[case]["sequences"] == expected["sequences"], "if that is meant: python tests/golden/make.py"
    assert found[case]["accepted"] == expected["accepted"]
    for got, row in zip(found[case]["scores"], expected["scores"], strict=True):
        assert got == pytest.approx(row, abs=2e-4)
