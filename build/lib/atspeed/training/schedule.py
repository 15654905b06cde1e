"""Training schedule and criterion of model selection, checked before anything is loaded."""

import importlib.util
import os
from dataclasses import dataclass

from genrec.runtime.errors import UserError

REPORTERS = ("none", "tensorboard", "wandb")
SELECT_BY = ("accepted", "eval_loss")


@dataclass(frozen=True)
class Schedule:
    """How long, how fast, and where it is reported."""

    epochs: int
    batch_size: int  # over all processes and accumulation steps
    micro_batch_size: int  # of one process, one step
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    patience: int  # epochs without a better one, by `select_by`
    seed: int
    report_to: str
    gradient_checkpointing: bool = False
    mixed_precision: str = "no"  # bf16, fp16 or no
    save_steps: int = 0  # steps between checkpoints within an epoch; 0: one an epoch
    select_by: str = "eval_loss"  # what tells the best weights, and when to stop: one of SELECT_BY

    def accumulation_steps(self, world: int) -> int:
        """Micro-batches to a step of the optimiser, with `world` processes.

        Raises UserError if batch_size is no multiple of what one micro-batch of all processes holds.
        """
        together = self.micro_batch_size * world
        if self.batch_size % together:
            raise UserError(
                f"--batch_size {self.batch_size} is not a multiple of {together}, which is --micro_batch_size "
                f"{self.micro_batch_size} x {world} processes"
            )
        return self.batch_size // together

    def check(self, world: int) -> None:
        """Raises UserError for what cannot be run here."""
        self.accumulation_steps(world)
        if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
            raise UserError(
                "zero_stage 3 in ACCELERATE_CONFIG: shards weights; accelerate.fsdp.yaml does that, take it"
            )
        if self.report_to not in REPORTERS:
            raise UserError(f"--report_to {self.report_to}: choose from {', '.join(REPORTERS)}")
        if self.report_to != "none" and importlib.util.find_spec(self.report_to) is None:
            raise UserError(f"--report_to {self.report_to}: not installed; pip install {self.report_to}")


def check_selection(by: str, users: int) -> None:
    """Raises UserError for what cannot be measured."""
    if by not in SELECT_BY:
        raise UserError(f"--select_by {by}: choose from {', '.join(SELECT_BY)}")
    if by == "accepted" and not users:
        raise UserError("--select_users 0 decodes nothing to select by; pass --select_by eval_loss, or more users")
