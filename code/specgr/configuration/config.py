"""One schema for all configurations: YAML, with every key known, typed and in range; flags override single keys.

--config code/specgr/configs/games.yaml --stage1.learning_rate 1e-3 --output_dir output/games
"""

import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path

import yaml

from genrec.runtime.cli import errors_in_one_line
from genrec.runtime.errors import UserError
from genrec.runtime.limits import RANGES, Range
from genrec.runtime.text import read_text
from specgr.configuration.specgr_settings import SpecGRSettings

Flags = typing.TypeVar("Flags")
AUX, PLUS = SpecGRSettings(draft_size=50, num_beams=20), SpecGRSettings()  # as published


def number(default: float, low: float = 0, high: float = math.inf):
    """A field whose value is in [low, high]."""
    return field(default=default, metadata={"range": Range(low, high)})


@dataclass(frozen=True)
class TigerShape:
    """See `tiger.TigerSettings`, which has what follows from the identifiers too."""

    d_model: int = number(64, 1)
    d_ff: int = number(1024, 1)
    layers: int = number(4, 1)
    heads: int = number(4, 1)
    d_kv: int = number(64, 1)
    dropout: float = number(0.1, 0, 0.99)
    projection: int = number(64, 1)


@dataclass(frozen=True)
class UniSRecShape:
    """See `unisrec.UniSRecSettings`."""

    hidden: int = number(300, 1)
    inner: int = number(256, 1)
    layers: int = number(2, 1)
    heads: int = number(2, 1)
    experts: int = number(8, 1)
    dropout: float = number(0.5, 0, 0.99)
    adaptor_dropout: float = number(0.2, 0, 0.99)
    temperature: float = number(0.07, 1e-6)


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how fast something is trained, with AdamW: either epochs or steps is not 0."""

    epochs: int = number(0)
    steps: int = number(0)
    batch_size: int = number(256, 1)  # over all processes
    learning_rate: float = number(1e-3, 1e-12)
    weight_decay: float = number(0.0)
    warmup_steps: int = number(0)
    cosine: bool = True  # down to 0 at the last step; else constant after the warm-up
    eval_steps: int = number(0)  # between validations, each a checkpoint; 0: an epoch
    patience: int = number(0)  # validations without a better one before it ends; 0: it runs to its end


@dataclass(frozen=True)
class ContrastivePlan(TrainingPlan):
    """A stage of SpecGR++: weight of the embedding loss, and of the generation loss on the first rows of a batch."""

    lambda_emb: float = number(6.0)
    lambda_gen: float = number(1.0)
    temperature: float = number(0.07, 1e-6)
    generation_batch_size: int = number(256, 1)  # of batch_size, over all processes


@dataclass(frozen=True)
class Stage1Plan(ContrastivePlan):
    from_tiger: bool = False  # start from the trained TIGER; else from random weights, as published


@dataclass(frozen=True)
class Validation:
    """What the best weights are known by: NDCG@k of the thing trained, on a random choice of validation samples."""

    samples: int = number(2000, 1)
    k: int = number(50, 1)
    batch_size: int = number(64, 1)


@dataclass(frozen=True)
class Config:
    """All that training and inference are told."""

    dataset: str  # the folder data_path/dataset, see `data.load_data`
    data_path: str = "data"
    output_dir: str = "output/specgr"  # models and results, one folder a data set
    # Files; what they name as {data_path} and {dataset} is filled in.
    index: str | None = None  # identifiers, JSON; None: the one of the data set's folder
    embeddings: str | None = None  # text embeddings (n_items, d), .npy, for UniSRec; None: no SpecGR_Aux
    digits: int = number(256, 1)  # codes of the identification digit
    max_history: int = number(20, 1)  # the last items of a history are read
    seed: int = number(0, 0, 2**31 - 1)
    tiger: TigerShape = TigerShape()
    unisrec: UniSRecShape = UniSRecShape()
    train_tiger: TrainingPlan = TrainingPlan(steps=200_000)
    train_unisrec: TrainingPlan = TrainingPlan(epochs=300, cosine=False)
    stage1: Stage1Plan = Stage1Plan(epochs=50)
    stage2: ContrastivePlan = ContrastivePlan(epochs=15)
    validation: Validation = Validation()
    neighbours: SpecGRSettings = AUX  # with the neighbours as drafter; not published
    aux: SpecGRSettings = AUX
    plus: SpecGRSettings = PLUS

    def __post_init__(self) -> None:
        shape = self.unisrec
        if shape.hidden % shape.heads:
            raise ValueError(f"unisrec.hidden {shape.hidden} is no multiple of unisrec.heads {shape.heads}")
        for name in ("train_tiger", "train_unisrec", "stage1", "stage2"):
            plan = getattr(self, name)
            if bool(plan.epochs) == bool(plan.steps):
                raise ValueError(f"{name}: epochs {plan.epochs} and steps {plan.steps}; one of them must be 0, one not")
            if isinstance(plan, ContrastivePlan) and plan.generation_batch_size > plan.batch_size:
                raise ValueError(
                    f"{name}.generation_batch_size {plan.generation_batch_size} is more than {name}.batch_size "
                    f"{plan.batch_size}, of which it is a part"
                )


def run(main: Callable[[Config, Flags], None], flags: type[Flags]) -> None:
    """Start a stage: `main` gets the configuration and its own flags (a dataclass) from the command line."""
    with errors_in_one_line():
        if {"--help", "-h"} & set(sys.argv[1:]):
            print(sys.modules[main.__module__].__doc__)
            print("Flags: --config FILE", *(f"--{name}" for name in _keys(flags)))
            print("Keys of the configuration, each a flag too:", *(f"--{name}" for name in _keys(Config)))
        else:
            main(*read_arguments(sys.argv[1:], flags))


def read_arguments(arguments: list[str], flags: type[Flags]) -> tuple[Config, Flags]:
    """`--config FILE`, flags of the stage, and keys of the configuration with dots (`--stage1.epochs 3`).

    Raises UserError that names the flag, or file and key, that is unknown, missing, of a wrong type or out of range.
    """
    given = _pairs(arguments)
    if given.get("config", True) is True:
        raise UserError("--config is missing; pass --config FILE, such as code/specgr/configs/toy.yaml")
    own = {name: _value(given[name], hint, f"--{name}") for name, hint in _keys(flags).items() if name in given}
    overrides = {name: text for name, text in given.items() if name not in own and name != "config"}
    for name in overrides:
        _check_known(name, [*_keys(Config), *_keys(flags)], "unknown flag --")
    return load_config(Path(given["config"]), overrides), _build(flags, own, "--")


def load_config(path: Path, overrides: dict[str, str | bool] | None = None) -> Config:
    """Read a configuration. overrides: key with dots -> value as on the command line, instead of the file's.

    Raises UserError that names the file and the key.
    """
    values = _yaml(read_text(path), str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a YAML mapping of keys to values")
    hints = _keys(Config)
    for name, text in (overrides or {}).items():
        section, _, key = name.rpartition(".")
        value = _value(text, hints[name], f"--{name}")
        if not section:
            values[key] = value
        elif isinstance(values.get(section), dict | None):
            values[section] = (values.get(section) or {}) | {key: value}  # anew: sections may share one by a YAML alias
    config = _build(Config, values, f"{path}: ")
    return replace(config, index=_filled(config.index, config), embeddings=_filled(config.embeddings, config))


def _filled(path: str | None, config: Config) -> str | None:
    return path and path.replace("{data_path}", config.data_path).replace("{dataset}", config.dataset)


def _pairs(arguments: list[str]) -> dict[str, str | bool]:
    """Flag -> text, or True where none follows."""
    rest, given = list(arguments), {}
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if not flag.startswith("--"):
            raise UserError(f"unexpected argument {flag!r}; every argument is a flag: --name VALUE")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else True
        given[flag[2:]] = value
    return given


def _value(text: str | bool, hint: object, where: str) -> object:
    """What a flag is given. Text stays as typed: YAML would read the folder 2024_01_05 as the number 20240105."""
    if hint in (str, str | None) and text not in ("", "null"):
        return text
    return text if text is True else _yaml(text, where)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in keys[:number]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} stands twice; keep one", key.start_mark
                )
        return super().construct_mapping(node, deep)


def _yaml(text: str, where: str) -> object:
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise UserError(f"{where}: nested too deep to be read") from error
    except (yaml.YAMLError, ValueError) as error:  # a number of 5,000 digits is the latter
        raise UserError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from error


def _keys(cls: type) -> dict[str, object]:
    """All keys of a dataclass, those of its sections with a dot -> their types."""
    hints, keys = typing.get_type_hints(cls), {}
    for one in fields(cls):
        inner = hints[one.name]
        keys |= (
            {f"{one.name}.{key}": t for key, t in _keys(inner).items()} if is_dataclass(inner) else {one.name: inner}
        )
    return keys


def _check_known(name: str, known: list[str], where: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise UserError(f"{where}{name}; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"))


def _build(cls: type, values: dict, where: str, prefix: str = "") -> object:
    """The dataclass of these values; what is absent has its default."""
    hints, built = typing.get_type_hints(cls), {}
    for name in values:
        known = [prefix + one.name for one in fields(cls)]
        _check_known(f"{prefix}{name}", known, f"{where.removesuffix('--')}unknown key ")
    for one in fields(cls):
        name, hint = prefix + one.name, hints[one.name]
        if one.name not in values:
            if one.default is MISSING:
                raise UserError(f"{where}{name} is missing")
        elif is_dataclass(hint):
            given = {} if values[one.name] is None else values[one.name]
            if not isinstance(given, dict):
                raise UserError(f"{where}{name} is a section of keys, not {given!r}")
            default = {f.name: getattr(one.default, f.name) for f in fields(hint)}
            built[one.name] = _build(hint, default | given, where, f"{name}.")
        else:
            built[one.name] = value = _convert(values[one.name], hint, f"{where}{name}")
            limits = one.metadata.get("range") or RANGES.get(one.name)
            if limits and value is not None:
                limits.check(f"{where}{name}", value)
    try:
        return cls(**built)
    except ValueError as error:
        raise UserError(f"{where}{prefix}{error}") from error


def _convert(value: object, hint: object, where: str) -> object:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (option for option in typing.get_args(hint) if option is not types.NoneType)
    if typing.get_origin(hint) is tuple:  # a,b or [a, b]
        value = _yaml(f"[{value}]", where) if isinstance(value, str) else value
        values = value if isinstance(value, list) else [value]
        return tuple(_convert(item, typing.get_args(hint)[0], where) for item in values)
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3, which has no point, as text
        except ValueError:
            pass
    if type(value) is not hint:
        raise UserError(f"{where} takes {hint.__name__}, not {value!r}")
    return value


def flat(section: object, prefix: str) -> dict[str, object]:
    """A section as facts: key with dots -> value."""
    return {f"{prefix}.{name}": value for name, value in dataclasses.asdict(section).items()}
