import pytest

from tiny_tiger import random_codes, random_tiger


@pytest.fixture
def codes():
    return random_codes()


@pytest.fixture
def tiger(codes):
    return random_tiger(codes)
