"""Shares of the batches by the source of the prefixes that they are aligned on."""

import random
from dataclasses import dataclass

from atspeed.data.teacher_data import TRIE, holds
from atspeed.training.objectives import ITEM, STUDENT, TEACHER, Objective
from genrec.runtime.errors import UserError


@dataclass(frozen=True)
class Shares:
    """Which share of the batches (steps of the optimiser) is aligned on whose prefixes; the rest takes the
    objective's default prefix, as evaluation always does, so that its loss is comparable."""

    r_original: float = 0.0  # on the true item's prefix
    r_student: float = 0.0  # on the draft's own beams
    seed: int = 0

    def check(self, model_class: str, objective: Objective) -> None:
        """Raises UserError for invalid shares, or shares that an objective does not use."""
        shares = f"--r_original {self.r_original} and --r_student {self.r_student}"
        if self.r_original + self.r_student > 1:
            raise UserError(f"{shares} are shares of the batches: together at most 1")
        if objective.align is None and self.r_original + self.r_student > 0:
            raise UserError(f"{shares}: --model_class {model_class} compares no distributions; leave both at 0")

    def needs_target(self, objective: Objective, stored: bool, held: str = TRIE) -> bool:
        """Whether the live target must score some batches. stored: the teacher data hold the item's logits. held: of
        which tokens they hold the log-probabilities along the beams, of `ALIGNMENT_OVER`."""
        on_item = self.r_original > 0 or objective.default_prefix == ITEM
        beyond = objective.default_prefix == TEACHER and not holds(held, objective.alignment_over)
        return objective.align is not None and (self.r_student > 0 or beyond or (on_item and not stored))

    def source(self, default_prefix: str, step: int) -> str:
        """The source of the prefixes of that step: the same on every process, and after a restart."""
        draw = random.Random(f"{self.seed} {step}").random()
        if draw < self.r_original:
            return ITEM
        return STUDENT if draw < self.r_original + self.r_student else default_prefix
