"""The shipped toy data are what the generator writes, and what its docstring promises."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from genrec.data.dataset import load_dataset
from genrec.data.splits import SPLITS
from genrec.data.toy import FAVOURITES, make_toy
from genrec.runtime.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def toy():
    return load_dataset(str(ROOT / "data"), "toy")


def test_the_command_writes_the_shipped_files_byte_for_byte(tmp_path, toy):
    made = tmp_path / "toy"
    subprocess.run([sys.executable, "-m", "atspeed", "make-toy", "--output", made, "--seed", "0"], check=True)
    shipped = {path.name: path.read_bytes() for path in (ROOT / "data/toy").iterdir()}
    assert {path.name: path.read_bytes() for path in made.iterdir()} == shipped
    in_memory = make_toy()
    assert (in_memory.splits, in_memory.catalogue) == (toy.splits, toy.catalogue)


def test_the_seed_settles_the_data():
    fingerprints = [
        (made.splits.fingerprint, made.catalogue.fingerprint)
        for made in (make_toy(seed, n_items=300, n_users=300) for seed in (1, 1, 2))
    ]
    assert fingerprints[0] == fingerprints[1]
    assert all(one != other for one, other in zip(fingerprints[0], fingerprints[2], strict=True))


def test_counts(toy):
    splits, catalogue = toy.splits, toy.catalogue
    assert (len(splits.train), len(splits.items()), len(catalogue.identifiers)) == (2_000, 996, 1_000)
    assert [sum(map(len, splits[split].values())) for split in SPLITS] == [16_791, 1_443, 975]
    assert [len(toy.samples(split)) for split in SPLITS] == [2_000, 504, 289]
    assert [len({tokens[:n] for tokens in catalogue.items_of}) for n in (1, 2, 3, 4)] == [24, 192, 551, 994]
    assert sum(len(items) for items in catalogue.items_of.values() if len(items) > 1) == 12
    assert splits.items() <= catalogue.identifiers.keys()
    assert min(map(len, splits.train.values())) >= 2


def test_users_follow_their_tastes(toy):
    identifiers = toy.catalogue.identifiers
    alone = {items[0] for items in toy.catalogue.items_of.values() if len(items) == 1}  # others borrow their shelf
    steps = stays = nexts = 0
    for user, items in toy.splits.train.items():
        history = items + toy.splits.valid[user] + toy.splits.test[user]
        assert len(set(history)) == len(history), "no item twice"
        assert len({identifiers[item][:2] for item in history if item in alone}) <= FAVOURITES
        for item, after in pairwise(history):
            steps += 1
            stays += identifiers[item][:2] == identifiers[after][:2]
            nexts += after == item + 1
    assert stays / steps > 0.6
    assert nexts / stays > 0.5


def test_sizes_too_small_to_fill_the_splits_are_refused():
    with pytest.raises(UserError, match="--n_users 3, --n_items 50: too few to fill every split"):
        make_toy(n_items=50, n_users=3)
