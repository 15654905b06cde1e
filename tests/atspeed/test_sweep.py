"""Curves over one parameter: the table by hand, and what is refused."""

import pytest

from atspeed.benchmark.methods import BASELINE, GENERATE
from atspeed.benchmark.runner import Record
from atspeed.benchmark.sweeps import point, save_sweep, sweep_table
from atspeed.commands.sweep import _settings
from genrec.runtime.errors import UserError


def record(request, method, seconds, rounds):
    accepted = sum(rounds) / len(rounds) if rounds else None
    return Record(request, method, 5, [], seconds, max(len(rounds), 1), accepted, 1, 1, rounds=rounds)


def test_a_value_has_its_levels_speed_ups_and_what_its_first_round_accepts(tmp_path):
    records = []
    for request, first in enumerate(([3], [1, 1], [0, 2, 0], [2, 0])):
        records += [record(request, GENERATE, 4.0, []), record(request, BASELINE, 2.0, [])]
        records += [record(request, point(20), 1.0, first), record(request, point(0.5), 8.0, [0, 0])]
    table = sweep_table(records, (20, 0.5), levels=4).set_index("method")
    assert GENERATE not in table.index
    assert table.loc[point(20), ["value", "speed-up", "over gamma 0"]].tolist() == [20, 4, 2]
    assert table.loc[point(20), ["level 1", "level 2", "level 3"]].tolist() == [0.75, 0.5, 0.25]
    assert table.loc[point(20), "accepted levels"] == pytest.approx((3 + 1 + 2 / 3 + 1) / 4)
    assert table.loc[point(0.5), ["level 1", "speed-up"]].tolist() == [0, 0.5]
    page = save_sweep(tmp_path, "alpha", table.reset_index(), "a headline", "all identical")
    assert page.startswith("a headline\n\nall identical\n\n| K | value")
    assert "| gamma 0 |" in page
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("parameter", "values", "drafts", "message"),
    [
        ("beta", (1.0,), ("a",), "--parameter beta: choose from alpha, draft_beam_size, gamma, layers"),
        ("gamma", (1.0, 1.0), ("a",), "--values 1,1: one is there twice"),
        ("gamma", (1.5,), ("a",), "--values 1.5: gamma takes whole numbers"),
        ("draft_beam_size", (20.0, 40.0), ("a", "b"), "--draft_models a,b: a sweep over draft_beam_size takes one"),
        ("alpha", (0.1, 0.3), ("a",), "one draft for each of --values 0.1,0.3, in their order, not 1"),
    ],
)
def test_what_cannot_be_swept_is_refused(parameter, values, drafts, message):
    with pytest.raises(UserError, match=message):
        _settings(parameter, values, drafts, 40, 3)


def test_each_value_has_its_draft_its_width_and_its_levels():
    assert _settings("gamma", (1.0, 3.0), ("a",), 40, 2) == [(0, 40, 1), (0, 40, 3)]
    assert _settings("draft_beam_size", (20.0, 80.0), ("a",), 40, 2) == [(0, 20, 2), (0, 80, 2)]
    assert _settings("alpha", (0.1, 0.3), ("a", "b"), 40, 2) == [(0, 40, 2), (1, 40, 2)]
