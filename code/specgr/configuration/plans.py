"""The trainings, and which of them each method needs; checked before torch is imported."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from genrec.runtime.artefacts import read_facts
from genrec.runtime.errors import UserError
from specgr.configuration.config import Config, ContrastivePlan, TrainingPlan
from specgr.configuration.names import AUX, NEEDS, PLUS, PLUS_1, SPECGR_NEIGHBOURS, check_methods
from specgr.configuration.specgr_settings import SpecGRSettings

STAGES = ("tiger", "unisrec", "sasrec_t", "stage1", "stage2")  # in this order
OF_TEXTS = frozenset({"unisrec", "sasrec_t"})  # which need text embeddings


def plan_key(stage: str) -> str:
    """The section of the configuration that says how a stage is trained."""
    return stage if stage.startswith("stage") else f"train_{stage}"


def plan_of(config: Config, stage: str) -> TrainingPlan:
    return getattr(config, plan_key(stage))


def over_processes(plan: TrainingPlan, processes: int) -> TrainingPlan:
    """The plan of all processes together."""
    if not plan.per_process:
        return plan
    batches = ("batch_size", "generation_batch_size")
    sizes = {name: processes * getattr(plan, name) for name in batches if hasattr(plan, name)}
    return replace(
        plan, per_process=False, learning_rate=processes * plan.learning_rate,
        warmup_steps=plan.warmup_steps // processes, **sizes,
    )  # fmt: skip


def check_division(plan: TrainingPlan, name: str, processes: int) -> None:
    """Raises UserError if the processes cannot have as many rows each. plan: of all together."""
    sizes = {"batch_size": plan.batch_size}
    if isinstance(plan, ContrastivePlan):
        sizes["generation_batch_size"] = plan.generation_batch_size
    for key, size in sizes.items():
        if size % processes:
            raise UserError(f"{name}.{key} {size} cannot be shared by {processes} processes; choose a multiple")


def stage_folder(config: Config, stage: str) -> Path:
    return Path(config.output_dir) / config.dataset / stage


def check_trained(config: Config, stages: Sequence[str]) -> None:
    """Raises UserError if one of these trainings is not there."""
    for stage in stages:
        read_facts(stage_folder(config, stage), stage, "specgr_train")


def methods_of(config: Config, names: Sequence[str] = ()) -> tuple[str, ...]:
    """These methods, or, for none, all that the configuration has the data for."""
    return tuple(names) or tuple(name for name in NEEDS if config.embeddings or not OF_TEXTS & {*NEEDS[name]})


def stages_of(config: Config, names: Sequence[str]) -> list[str]:
    """The trainings that these methods need. Raises UserError for a method that does not exist or lacks its data."""
    check_methods(names)
    stages = [stage for stage in STAGES if any(stage in NEEDS[name] for name in names)]
    if config.embeddings is None and OF_TEXTS & {*stages}:
        raise UserError("embeddings is not set; UniSRec, SASRec_T and SpecGR_Aux read them: --embeddings FILE.npy")
    return stages


def settings_of(config: Config, name: str, **changes: float | None) -> SpecGRSettings:
    """The settings of SpecGR_Aux or SpecGR++: the configuration's, with the changes that are not None."""
    section = {SPECGR_NEIGHBOURS: config.neighbours, AUX: config.aux, PLUS_1: config.plus, PLUS: config.plus}[name]
    try:
        return replace(section, **{key: value for key, value in changes.items() if value is not None})
    except ValueError as error:
        raise UserError(f"--{error}") from error


def describe(settings: dict[str, SpecGRSettings]) -> str:
    """For a headline, after what else it says. settings: by method."""
    return "".join(f"; {name} δ {s.draft_size}, γ {s.threshold:g}, β {s.num_beams}" for name, s in settings.items())
