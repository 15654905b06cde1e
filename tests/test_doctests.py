"""The worked examples of the docstrings give what they say."""

import doctest
import importlib

import pytest

MODULES = ("beamsd.tree", "beamsd.trie", "beamsd.search.beams", "atspeed.training.losses")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0
