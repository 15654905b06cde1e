"""The configuration: its schema, and reading it from YAML with single keys overridden by flags.

--config code/specgr/configs/games.yaml --stage1.learning_rate 1e-3 --output_dir output/games
"""

import dataclasses
import math
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from inspect import Parameter
from pathlib import Path

import yaml

from genrec.runtime.cli import start
from genrec.runtime.errors import UserError
from genrec.runtime.flags import RANGES, Flag, Range, check_known, check_value, read_flags
from genrec.runtime.text import read_text
from specgr.configuration.specgr_settings import SpecGRSettings

Flags = typing.TypeVar("Flags")
AUX, PLUS = SpecGRSettings(draft_size=50, num_beams=20), SpecGRSettings()  # as published


def number(default: float, low: float = 0, high: float = math.inf):
    """A field whose value is in [low, high]."""
    return field(default=default, metadata={"range": Range(low, high)})


@dataclass(frozen=True)
class TigerShape:
    """The dimensions of TIGER, see `TigerSettings`."""

    d_model: int = number(64, 1)
    d_ff: int = number(1024, 1)
    layers: int = number(4, 1)
    heads: int = number(4, 1)
    d_kv: int = number(64, 1)
    dropout: float = number(0.1, 0, 0.99)
    projection: int = number(64, 1)


@dataclass(frozen=True)
class UniSRecShape:
    """The dimensions of UniSRec, see `UniSRecSettings`."""

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
    """Length, batch size and learning rate of a training with AdamW; one of epochs and steps is 0.

    Batch sizes, learning rate and warm-up are those of all processes together or, with `per_process`, of one, as in the
    release: n processes then have n times the batch and the rate, and an n-th of the warm-up's steps.
    """

    epochs: int = number(0)
    steps: int = number(0)
    batch_size: int = number(256, 1)  # over all processes
    learning_rate: float = number(1e-3, 1e-12)
    weight_decay: float = number(0.0)
    warmup_steps: int = number(0)
    cosine: bool = True  # down to 0 at the last step; else constant after the warm-up
    eval_steps: int = number(0)  # between validations, each a checkpoint; 0: an epoch
    patience: int = number(0)  # validations without a better one before it ends; 0: it runs to its end
    clip_norm: float = number(0.0)  # of the gradients of all weights together, at most; 0: any
    bf16: bool = False  # compute in bfloat16 where autocast does so; weights stay in float32
    per_process: bool = False


@dataclass(frozen=True)
class ContrastivePlan(TrainingPlan):
    """A stage of SpecGR++: weights of the embedding loss, and of the generation loss on a batch of its own.

    An epoch is as many steps as the smaller of the two batches takes to see every sample.
    """

    lambda_emb: float = number(6.0)
    lambda_gen: float = number(1.0)
    temperature: float = number(0.07, 1e-6)
    generation_batch_size: int = number(256, 1)  # over all processes
    clip_norm: float = number(1.0)


@dataclass(frozen=True)
class Stage1Plan(ContrastivePlan):
    from_tiger: bool = False  # start from the trained TIGER; else from random weights, as published


@dataclass(frozen=True)
class Validation:
    """Model selection: NDCG@k on a random choice of validation samples."""

    samples: int = number(2000, 1)
    k: int = number(50, 1)
    batch_size: int = number(64, 1)


@dataclass(frozen=True)
class Config:
    """The configuration of training and inference."""

    dataset: str  # the folder data_path/dataset, see `data.load_data`
    data_path: str = "data"
    output_dir: str = "output/specgr"  # models and results, one folder a data set
    # Files; what they name as {data_path} and {dataset} is filled in.
    index: str | None = None  # identifiers, JSON; None: the one of the data set's folder
    embeddings: str | None = None  # text embeddings (n_items, d), .npy, for UniSRec; None: no SpecGR_Aux
    digits: int = number(256, 1)  # codes of the identification digit
    bos_eos: bool = False  # the encoder reads a BOS token before the codes and an EOS token after them
    max_history: int = number(20, 1)  # the last items of a history are read
    seed: int = number(0, 0, 2**31 - 1)
    tiger: TigerShape = TigerShape()
    unisrec: UniSRecShape = UniSRecShape()
    sasrec_t: UniSRecShape = UniSRecShape(experts=1)  # a baseline: texts through one linear map, and a transformer
    train_tiger: TrainingPlan = TrainingPlan(steps=200_000)
    train_unisrec: TrainingPlan = TrainingPlan(epochs=300, cosine=False)
    train_sasrec_t: TrainingPlan = TrainingPlan(epochs=300, cosine=False)
    stage1: Stage1Plan = Stage1Plan(epochs=50)
    stage2: ContrastivePlan = ContrastivePlan(epochs=15)
    validation: Validation = Validation()
    neighbours: SpecGRSettings = AUX  # with the neighbours as drafter; not published
    aux: SpecGRSettings = AUX
    plus: SpecGRSettings = PLUS

    def __post_init__(self) -> None:
        for name, shape in (("unisrec", self.unisrec), ("sasrec_t", self.sasrec_t)):
            if shape.hidden % shape.heads:
                raise ValueError(f"{name}.hidden {shape.hidden} is no multiple of {name}.heads {shape.heads}")
        for name in ("train_tiger", "train_unisrec", "train_sasrec_t", "stage1", "stage2"):
            plan = getattr(self, name)
            if bool(plan.epochs) == bool(plan.steps):
                raise ValueError(f"{name}: epochs {plan.epochs} and steps {plan.steps}; one of them must be 0, one not")


def run_configured(main: Callable[[Config, Flags], None], own: type[Flags]) -> None:
    """Run a program: `main` gets the configuration and the program's own flags, a dataclass."""
    with start(main, all_flags(own)) as given:
        main(*configured(given, own))


def all_flags(own: type[Flags]) -> dict[str, Flag]:
    """The flags of a program: --config, its own, and every key of the configuration."""
    keys = {"config": Flag(str)} | _keys(own) | _keys(Config)
    return keys | {"dataset": replace(keys["dataset"], default="the file's")}  # for --help; the file must have it


def read_arguments(arguments: list[str], own: type[Flags]) -> tuple[Config, Flags]:
    """`--config FILE`, flags of the program, and keys of the configuration with dots (`--stage1.epochs 3`).

    Raises UserError that names the flag, or file and key, that is unknown, missing, of a wrong type or out of range.
    """
    return configured(read_flags(arguments, all_flags(own)), own)


def configured(given: dict[str, object], own: type[Flags]) -> tuple[Config, Flags]:
    """The configuration that the given flags name and change, and the program's own flags."""
    flags = own(**{name: given.pop(name) for name in _keys(own) if name in given})
    return load_config(Path(given.pop("config")), given), flags


def load_config(path: Path, overrides: dict[str, object] | None = None) -> Config:
    """Read a configuration. overrides: key with dots -> value, instead of the file's.

    Raises UserError that names the file and the key.
    """
    values = _yaml(read_text(path), str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a YAML mapping of keys to values")
    for name, value in (overrides or {}).items():
        section, _, key = name.rpartition(".")
        if not section:
            values[key] = value
        elif isinstance(values.get(section), dict | None):
            values[section] = (values.get(section) or {}) | {key: value}  # anew: sections may share one by a YAML alias
    config = _build(Config, values, f"{path}: ")
    return replace(config, index=_filled(config.index, config), embeddings=_filled(config.embeddings, config))


def _filled(path: str | None, config: Config) -> str | None:
    return path and path.replace("{data_path}", config.data_path).replace("{dataset}", config.dataset)


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


def _keys(cls: type) -> dict[str, Flag]:
    """All keys of a dataclass, those of its sections with a dot, as flags."""
    hints, keys = typing.get_type_hints(cls), {}
    for one in fields(cls):
        hint = hints[one.name]
        if is_dataclass(hint):
            keys |= {
                f"{one.name}.{key}": replace(flag, default=getattr(one.default, key))
                for key, flag in _keys(hint).items()
            }  # fmt: skip
        else:
            default = Parameter.empty if one.default is MISSING else one.default
            keys[one.name] = Flag(hint, default, one.metadata.get("range") or RANGES.get(one.name))
    return keys


def _build(cls: type, values: dict, where: str, prefix: str = "") -> object:
    """The dataclass of these values; what is absent has its default."""
    hints, built, keys = typing.get_type_hints(cls), {}, _keys(cls)
    for name in values:
        check_known(f"{prefix}{name}", [prefix + one.name for one in fields(cls)], f"{where}unknown key ")
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
            built[one.name] = check_value(f"{where}{name}", values[one.name], keys[one.name])
    try:
        return cls(**built)
    except ValueError as error:
        raise UserError(f"{where}{prefix}{error}") from error


def flat(section: object, prefix: str) -> dict[str, object]:
    """A section as facts: key with dots -> value."""
    return {f"{prefix}.{name}": value for name, value in dataclasses.asdict(section).items()}
