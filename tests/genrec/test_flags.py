"""Every flag is explained, and every number has its limits."""

import dataclasses
import importlib
import inspect
import math
import typing

import pytest

from atspeed.__main__ import command_names
from genrec.runtime.errors import UserError
from genrec.runtime.flags import RANGES, Flag, convert, help_text, meanings, read_flags
from specgr.configuration.config import all_flags

UNBOUNDED = {"threshold", "thresholds"}
PROGRAMS = [f"atspeed.commands.{name.replace('-', '_')}" for name in command_names()]
PROGRAMS += ["specgr.process_data"]


def numbers(hints):
    return {name for name, hint in hints.items() if {int, float} & {hint, *typing.get_args(hint)}}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_number_of_a_program_has_a_range_that_holds_its_default(program):
    main = importlib.import_module(program).main
    named = numbers(typing.get_type_hints(main))
    assert named <= RANGES.keys() | UNBOUNDED
    for name, parameter in inspect.signature(main).parameters.items():
        if name in named - UNBOUNDED and parameter.default not in (None, parameter.empty):
            RANGES[name].check(name, parameter.default)


@pytest.mark.parametrize("command", ["run", "speed", "sweep", "train"])
def test_so_have_the_flags_of_specgr(command):
    flags = importlib.import_module(f"specgr.{command}").Flags
    assert numbers(typing.get_type_hints(flags)) <= RANGES.keys() | UNBOUNDED
    for field in dataclasses.fields(flags):
        if field.name in RANGES and field.default is not None:
            RANGES[field.name].check(field.name, field.default)


def all_names():
    """The flags of all programs, keys of SpecGR's configuration by the last part of their names."""
    for program in PROGRAMS:
        yield from inspect.signature(importlib.import_module(program).main).parameters
    for command in ("run", "speed", "sweep", "train"):
        yield from (name.rpartition(".")[2] for name in all_flags(importlib.import_module(f"specgr.{command}").Flags))


def test_every_flag_is_explained_and_every_explanation_is_of_a_flag():
    assert meanings().keys() == {*all_names()}
    assert [*meanings()] == sorted(meanings())


def test_help_shows_type_default_and_meaning():
    flags = {"widths": Flag(tuple[int, ...], (1, 5)), "seed": Flag(int | None, None), "dataset": Flag(str)}
    assert help_text("What it does.", flags | {"threshold": Flag(float, -1.8)}).splitlines() == [
        "What it does.", "", "Flags:", "  --widths INT,INT,… (default: 1,5)", "",
        "  --seed INT (default: None)", "      seed of all random numbers",
        "  --dataset STR (required)", "      name of the data set",
        "  --threshold FLOAT (default: -1.8)", "      γ, mean log-probability above which a draft is accepted",
    ]  # fmt: skip


@pytest.mark.parametrize("arguments", [["--threshold", "-inf"], ["--threshold=-inf"], ["--threshold", "-.inf"]])
def test_minus_infinity_is_a_value_and_no_flag(arguments):
    assert read_flags(arguments, {"threshold": Flag(float, -1.8)}) == {"threshold": -math.inf}


def test_what_is_no_number_is_refused_without_a_warning(recwarn):
    with pytest.raises(UserError, match="--seed takes int, not '5or'"):
        read_flags(["--seed", "5or"], {"seed": Flag(int, 0)})
    assert not recwarn.list


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("1e-3", float, 1e-3), ("-inf", float, -math.inf), (2, float, 2.0), ("7", int | None, 7),
        (None, int | None, None), ("-.inf", float, -math.inf),
        ("null", str | None, None), ("2024_01_05", str, "2024_01_05"), ("1,2", tuple[int, ...], (1, 2)),
        ([1, 2], tuple[int, ...], (1, 2)), ("False", bool, False), ("true", bool, True),
        ("a,b c", tuple[str, ...], ("a", "b c")),
    ],
)  # fmt: skip
def test_text_and_yaml_become_the_same_values(value, hint, expected):
    got = convert("--flag", value, hint)
    assert (got, type(got)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_size", 0, "at least 1"),
        ("epochs", 0, "at least 1"),
        ("warmup_steps", -1, "at least 0"),
        ("temperature", 0.0, "above 0"),
        ("learning_rate", -1.0, "above 0"),
        ("learning_rate", math.inf, "above 0"),
        ("weight_decay", math.nan, "at least 0"),
        ("alpha", 1.5, "in 0 … 1"),
        ("seed", -1, "in 0 … 4294967295"),
        ("codebooks", (8, 1), "at least 2, each"),
        ("ratios", (8.0, 1.0, 0.0), "above 0, each"),
    ],
)
def test_the_message_has_flag_value_and_range(name, value, message):
    said = ",".join(f"{one:g}" for one in (value if isinstance(value, tuple) else (value,)))
    with pytest.raises(UserError) as refusal:
        RANGES[name].check(f"--{name}", value)
    assert str(refusal.value) == f"--{name} {said}: must be {message}"
