"""Command-line flags: parsing, type conversion and range checks, shared by all programs.

A flag has the same meaning in every program: flags.md documents it, and `RANGES` holds the numbers it may take.
"""

import difflib
import math
import re
import types
import typing
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path

from genrec.runtime.errors import UserError

_VALUE_ENDS = re.compile(r"--|-(?!inf$)[a-zA-Z]|-$")  # the start of an argument that is not a value


@dataclass(frozen=True)
class Range:
    """A range of finite numbers from `low` to `high`, both included."""

    low: float
    high: float = math.inf
    above: bool = False  # excludes `low` itself

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        if self.low == -math.inf:
            return "finite"
        if self.high < math.inf:
            return f"in {self.low:.10g} … {self.high:.10g}"
        return f"above {self.low:g}" if self.above else f"at least {self.low:g}"

    def check(self, where: str, value: float | tuple[float, ...]) -> None:
        """Raises UserError that begins with `where`, the value's flag or key, if a number is outside the range."""
        values = value if isinstance(value, tuple) else (value,)
        if not all(one in self for one in values):
            said = ",".join(f"{one:g}" if isinstance(one, float) else str(one) for one in values)
            raise UserError(f"{where} {said}: must be {self}" + (", each" if len(values) > 1 else ""))


COUNTS = (
    "actors", "batch_size", "batch_sizes", "beam_size", "beams", "clients", "cutoff", "draft_beam_size", "draft_size",
    "draft_sizes", "draft_width", "drawn_users", "draws", "encode_batch_size", "epochs", "eval_epochs", "gamma",
    "hidden", "item_count", "k", "latent", "layers", "levels", "lora_alpha", "lora_r", "max_history", "max_items",
    "max_k", "max_queue", "max_tokens", "max_users", "micro_batch_size", "min_train_items", "minutes", "n_users",
    "nodes", "num_beams", "patience", "repetitions", "requests", "run_beam_sizes", "select_beam_size", "shard_size",
    "top_k", "vocabulary", "width", "workers_per_device",
)  # fmt: skip
MAY_BE_0 = (
    "batch_wait", "beta", "clip_norm", "collaborative", "drain_seconds", "epsilon", "gpus_per_actor", "item_core",
    "keep_layers", "noise", "save_steps", "select_users", "user_core", "values", "warmup", "warmup_epochs",
    "warmup_steps", "weight_decay",
)  # fmt: skip
ABOVE_0 = ("cpus_per_actor", "learning_rate", "max_eval_steps", "max_wait", "rates", "ratios", "seconds", "temperature")
SHARES = ("alpha", "new_items", "r_original", "r_student")
RANGES = {
    **dict.fromkeys(COUNTS, Range(1)),
    **dict.fromkeys(MAY_BE_0, Range(0)),
    **dict.fromkeys(ABOVE_0, Range(0, above=True)),
    **dict.fromkeys(SHARES, Range(0, 1)),
    "codebooks": Range(2),
    "lora_dropout": Range(0, 0.99),
    "mean_length": Range(4),
    "n_items": Range(50),
    "port": Range(1024, 65535),
    "seed": Range(0, 2**32 - 1),  # the seeds that numpy accepts
}


@dataclass(frozen=True)
class Flag:
    """The type, default and range of a flag of one program."""

    hint: object  # a type, `T | None`, or `tuple[T, ...]`
    default: object = Parameter.empty  # empty: the flag is required
    range: Range | None = None  # None: any value


def read_flags(arguments: list[str], flags: dict[str, Flag], first: str | None = None) -> dict[str, object]:
    """Parses a command line and returns the converted and checked values by flag name.

    first: the flag that a leading positional argument sets. Raises UserError that names the flag.
    """
    rest, given = list(arguments), {}
    if first and rest and not rest[0].startswith("-"):
        rest[0] = f"--{first}={rest[0]}"
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            example = next(iter(flags))
            raise UserError(f"unexpected argument {argument!r}; every argument is a flag, such as --{example} VALUE")
        flag, equals, text = argument.partition("=")
        name, bare = flag[2:].replace("-", "_"), not equals and (not rest or bool(_VALUE_ENDS.match(rest[0])))
        if bare:
            text = str(name in flags)
            name = name if name in flags else name.removeprefix("no")
        elif not equals:
            text = rest.pop(0)
        if name not in flags:
            near = difflib.get_close_matches(flag[2:].replace("-", "_"), flags, n=1)
            hint = f"did you mean --{near[0]}?" if near else f"known flags: {', '.join('--' + each for each in flags)}"
            raise UserError(f"unknown flag {flag}; {hint}")
        if bare and not _is_switch(flags[name].hint):
            raise UserError(f"{flag} needs a value: {flag} VALUE")
        given[name] = text
    for name, flag in flags.items():
        if flag.default is Parameter.empty and name not in given:
            raise UserError(f"--{name} is missing; pass --{name} VALUE")
    return {name: check_value(f"--{name}", text, flags[name]) for name, text in given.items()}


def _is_switch(hint: object) -> bool:
    """Whether a flag may stand without a value."""
    return hint is bool or bool in typing.get_args(hint)


def check_value(where: str, value: object, flag: Flag) -> object:
    """Converts `value`, from a command line or a YAML file, to the flag's type and checks its range.

    Raises UserError that begins with `where`: the flag, or the file and key.
    """
    value = convert(where, value, flag.hint)
    if flag.range and value is not None:
        flag.range.check(where, value)
    return value


def convert(where: str, value: object, hint: object) -> object:
    """Converts `value` to the type `hint`. For str, text is kept as typed: 2024_01_05 is a folder, not a number."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # Python 3.10 gives Union for a default of None
        if value in (None, "", "None", "null"):
            return None
        (hint,) = (option for option in typing.get_args(hint) if option is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        return _convert_list(where, value, typing.get_args(hint)[0])
    if value == "" and hint is str:
        raise UserError(f"{where} is empty; give a value")
    if hint is bool and str(value).lower() in ("true", "false"):  # lower case, as in shell scripts
        return str(value).lower() == "true"
    if isinstance(value, str) and hint is not str:
        value = _parsed(value)
    if hint is float and type(value) in (int, str):
        try:
            return float(str(value).replace(".inf", "inf").replace(".nan", "nan"))  # the spelling of YAML
        except ValueError:
            pass
    if type(value) is not hint:
        raise UserError(f"{where} takes {hint.__name__}, not {value!r}")
    return value


def _parsed(text: str) -> object:
    """The Python value that `text` writes."""
    if re.fullmatch("[1-9][0-9]*", text):
        return int(text)
    import fire.parser  # here, since gpu_check does without

    with warnings.catch_warnings():  # of what is no value, such as 5or: it is refused later
        warnings.simplefilter("ignore", SyntaxWarning)
        return fire.parser.DefaultParseValue(text)


def _convert_list(where: str, value: object, kind: type) -> tuple:
    """Converts a list or comma-separated text to a tuple; only for str may the text be empty."""
    if isinstance(value, list):
        return tuple(convert(where, one, kind) for one in value)
    text = str(value)
    parts = [part.strip() for part in text.strip("()[]").split(",")]
    if kind is str:
        if "" in parts and text:
            raise UserError(f"{where} {text}: there is nothing between two commas, or before or after one")
        return tuple(parts) if text else ()
    try:
        return tuple(kind(part) for part in parts)
    except ValueError as error:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{where} takes {what} with commas between them, such as 1,2,3, not {text!r}") from error


def check_known(name: str, known: Collection[str], where: str) -> None:
    """Raises UserError that begins with `where` for an unknown key and suggests the most similar known one."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise UserError(f"{where}{name}; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"))


def meanings() -> dict[str, str]:
    """Returns the meaning of every flag by name, from the table in flags.md."""
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", Path(__file__).with_suffix(".md").read_text("utf-8"), re.MULTILINE)
    return dict(rows)


def help_text(doc: str, flags: dict[str, Flag]) -> str:
    """Returns the --help text: what the program does, then every flag with its type, default and meaning."""
    said, lines = meanings(), [doc.strip(), "", "Flags:"]
    for name, flag in flags.items():
        default = "required" if flag.default is Parameter.empty else f"default: {_shown(flag.default)}"
        lines += [f"  --{name} {_type_name(flag.hint)} ({default})", f"      {said.get(name.rpartition('.')[2], '')}"]
    return "\n".join(line.rstrip() for line in lines)


def _shown(value: object) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _type_name(hint: object) -> str:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (option for option in typing.get_args(hint) if option is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0].__name__.upper()
        return f"{kind},{kind},…"
    return hint.__name__.upper()
