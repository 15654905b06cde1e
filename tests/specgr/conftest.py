import pytest

from genrec.data.toy import make_toy
from tiny_tiger import random_codes, random_tiger
from tiny_world import CONFIG, run


@pytest.fixture
def codes():
    return random_codes()


@pytest.fixture
def tiger(codes):
    return random_tiger(codes)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with data and a configuration, see `tiny_world`."""
    folder = tmp_path_factory.mktemp("world")
    make_toy(n_items=150, n_users=200, new_items=0.6).save(folder / "data/toy")
    (folder / "config.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="session")
def trained(world):
    """The folder that all trainings have written to."""
    return run(world, "whole")
