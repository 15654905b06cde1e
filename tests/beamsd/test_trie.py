"""The trie against a dictionary of prefixes."""

import subprocess
import sys

import pytest
import torch

from beamsd import Trie
from conftest import LENGTH, ROOT, random_items


def test_hand_worked_arrays():
    trie = Trie(torch.tensor([[7, 1], [3, 2], [3, 1], [3, 2]]))
    # root 0; 3 -> 1, 7 -> 2; under 3: 1 -> 3, 2 -> 4; under 7: 1 -> 5; end 6, dead 7
    assert trie.tokens.tolist() == [0, 3, 7, 1, 2, 1, 0, 0]
    assert trie.first_child.tolist() == [1, 3, 5, 6, 6, 6, 6, 6, 6]
    assert trie.final.tolist() == [False] * 3 + [True] * 3 + [False] * 2
    assert (trie.length, trie.shortest, trie.fanout, trie.end, trie.dead, trie.vocabulary_size) == (2, 2, 2, 6, 7, 8)
    assert trie.children(torch.tensor([0, 2, 7])).tolist() == [[1, 2], [5, 7], [7, 7]]
    assert trie.walk(torch.tensor([[3, 2], [7, 2], [0, 1]])).tolist() == [[0, 1, 4], [0, 2, 7], [0, 7, 7]]


def test_hand_worked_sequences_of_different_lengths():
    trie = Trie.from_sequences([[3, 4], [3, 4, 5], [6], [8, 2]])
    # root 0; 3 -> 1, 6 -> 2, 8 -> 3; 3 4 -> 4, 8 2 -> 5; 3 4 5 -> 6; end 7, dead 8
    assert (trie.length, trie.shortest, trie.dead) == (3, 1, 8)
    assert trie.final.nonzero().flatten().tolist() == [2, 4, 5, 6]
    assert trie.children(torch.tensor([4, 2])).tolist() == [[6, 8, 8], [8, 8, 8]]
    ended = trie.ended_by(2)
    assert ended is trie.ended_by(2), "made once"
    # A sequence that brings its own EOS gets no second one.
    assert ended.children(torch.tensor([0, 4, 2, 3, 5])).tolist() == [
        [1, 2, 3, 8], [6, 8, 8, 7], [8, 8, 8, 7], [5, 8, 8, 8], [8, 8, 8, 8],
    ]  # fmt: skip
    assert ended.walk(torch.tensor([[3, 4, 2], [6, 2, 2], [3, 2, 2]])).tolist() == [
        [0, 1, 4, 7], [0, 2, 7, 8], [0, 1, 8, 8],
    ]  # fmt: skip


@pytest.mark.parametrize("n_items", [1, 50, 500])
def test_children_are_exactly_the_legal_tokens(n_items):
    items = random_items(n_items)
    trie = Trie(items[torch.randperm(len(items))])
    legal = {}
    for item in items.tolist():
        for depth in range(LENGTH):
            legal.setdefault(tuple(item[:depth]), set()).add(item[depth])
    states = trie.walk(items)
    assert len(states.unique()) == len(legal) + len(items) == trie.end
    for item, path in zip(items.tolist(), states.tolist(), strict=True):
        for depth in range(LENGTH):
            children = trie.children(torch.tensor(path[depth]))
            tokens = trie.tokens[children[children != trie.dead]].tolist()
            assert tokens == sorted(legal[tuple(item[:depth])])
    assert (trie.children(states[:, -1]) == trie.dead).all()


@pytest.mark.parametrize(
    "build",
    [
        lambda: Trie(torch.empty(0, 4)), lambda: Trie(torch.tensor([1, 2])), lambda: Trie(torch.tensor([[1, -2]])),
        lambda: Trie(torch.tensor([[1.0, 2.0]])), lambda: Trie.from_sequences([]),
        lambda: Trie.from_sequences([[1], []]), lambda: Trie.from_sequences([[1], [2, -1]]),
    ],
)  # fmt: skip
def test_bad_items_are_refused(build):
    with pytest.raises(ValueError, match="trie needs"):
        build()


@pytest.mark.parametrize("eos", [None, 2, 5, 99])
def test_advancing_is_choosing_among_the_children(eos):
    trie = Trie.from_sequences([[3, 4], [3, 4, 5], [6], [7, 2], [7]])
    trie = trie if eos is None else trie.ended_by(eos)
    states = torch.arange(trie.dead + 1)
    children = trie.children(states)
    for token in (-1, *range(9), 99):
        legal = (trie.tokens[children] == token) & (children != trie.dead)
        expected = torch.where(legal, children, trie.dead).amin(-1)
        assert torch.equal(trie.advance(states, torch.full_like(states, token)), expected)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    trie = Trie.from_sequences([[3, 4], [3, 4, 5], [6]])
    trie.save(tmp_path / "items.safetensors")
    loaded = Trie.load(tmp_path / "items.safetensors")
    for name in ("tokens", "first_child", "final"):
        assert torch.equal(getattr(loaded, name), getattr(trie, name))
    for name in ("length", "shortest", "fanout", "vocabulary_size", "dead"):
        assert getattr(loaded, name) == getattr(trie, name)
    assert [file.name for file in tmp_path.iterdir()] == ["items.safetensors"], "nothing partial is left"


def test_other_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "text").write_text("no trie")
    save_file({"tokens": torch.zeros(1)}, tmp_path / "other")
    for name in ("text", "other"):
        with pytest.raises(ValueError, match=name):
            Trie.load(tmp_path / name)


SCALE = """
import resource, time, torch
from beamsd import Trie
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
torch.set_num_threads(1)
items = torch.stack([torch.randint(256 * l, 256 * (l + 1), (1_500_000,)) for l in range(4)], -1)
before, start = used(), time.perf_counter()
trie = Trie(items)
built = time.perf_counter() - start
states = trie.walk(items[:20, :2])[None, :, -1]
steps = []
for _ in range(50):
    start = time.perf_counter()
    trie.tokens[trie.children(states)]
    steps.append(time.perf_counter() - start)
print(built, used() - before, sorted(steps)[25] * 1e3)
"""


def test_one_and_a_half_million_items_build_in_a_minute_and_a_gigabyte_and_a_step_takes_less_than_a_millisecond():
    done = subprocess.run(
        [sys.executable, "-c", SCALE],
        env={"PYTHONPATH": str(ROOT / "code")},
        text=True,
        capture_output=True,
        check=True,
    )
    seconds, megabytes, milliseconds = map(float, done.stdout.split())
    assert seconds < 60
    assert megabytes < 1024
    assert milliseconds < 1
