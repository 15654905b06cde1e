"""What is trained, and where the configuration says how."""

from genrec.errors import UserError
from specgr.config import Config, ContrastivePlan, Plan

STAGES = ("tiger", "unisrec", "stage1", "stage2")  # in this order


def plan_key(stage: str) -> str:
    """The section of the configuration that says how a stage is trained."""
    return stage if stage.startswith("stage") else f"train_{stage}"


def plan_of(config: Config, stage: str) -> Plan:
    return getattr(config, plan_key(stage))


def check_division(plan: Plan, name: str, processes: int) -> None:
    """Raises UserError if the processes cannot have as many rows each."""
    sizes = {"batch_size": plan.batch_size}
    if isinstance(plan, ContrastivePlan):
        sizes["generation_batch_size"] = plan.generation_batch_size
    for key, size in sizes.items():
        if size % processes:
            raise UserError(f"{name}.{key} {size} cannot be shared by {processes} processes; choose a multiple")
