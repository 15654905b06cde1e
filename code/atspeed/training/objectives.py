"""Training objectives by MODEL_CLASS, under the names of the release."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from atspeed.training.losses import kl, topk_alignment, tvd
from genrec.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# Whose prefixes a batch is aligned on: the true item's, those of the teacher data (the target's own beams), or those of
# the draft's own beams.
ITEM, TEACHER, STUDENT = "item", "teacher", "student"


@dataclass(frozen=True)
class Objective:
    """loss = (1 − α) · recommendation loss + α · alignment loss; without an alignment, the recommendation loss."""

    align: Callable[[Tensor, Tensor], Tensor] | None  # (student, teacher) logits -> loss per position
    default_prefix: str | None = (
        None  # whose prefixes, unless the data policy says otherwise: ITEM or TEACHER; None: no alignment
    )
    constrained_loss: bool = True  # compare the legal tokens only; else the whole vocabulary, token by token
    constrained_softmax: bool = True  # renormalise over the legal tokens; else all others count as one more token

    @property
    def imitates_beams(self) -> bool:
        """Cross-entropy on the teacher's beams themselves, without the teacher's probabilities."""
        return self.default_prefix is not None and self.align is None


MODEL_CLASSES = ("SFTModel", "WordKDModel", "TVDKDModel", "SeqKDModel", "AtSpeedSModel", "AtSpeedRModel")


def make_objective(
    model_class: str, top_k: int = 20, constrained_loss: bool | None = None, constrained_softmax: bool | None = None
) -> Objective:
    """None leaves what the class is defined with: legal tokens for AtSpeed, the whole vocabulary for WordKD and TVDKD.

    Raises UserError for a class that does not exist, and for constraints that contradict it or one another.
    """
    objectives = {
        "SFTModel": Objective(None),
        "WordKDModel": Objective(kl, ITEM, False, False),
        "TVDKDModel": Objective(tvd, ITEM, False, False),
        "SeqKDModel": Objective(None, TEACHER),
        "AtSpeedSModel": Objective(lambda q, p: topk_alignment(q, p, top_k), TEACHER),
        "AtSpeedRModel": Objective(tvd, TEACHER),
    }
    if model_class not in objectives:
        raise UserError(f"--model_class {model_class}: choose from {', '.join(MODEL_CLASSES)}")
    objective = objectives[model_class]
    if objective.align is None and False in (constrained_loss, constrained_softmax):
        raise UserError(
            f"--model_class {model_class} compares no distributions; leave out --constrained_loss and "
            "--constrained_softmax"
        )
    if constrained_loss is None:
        constrained_loss = objective.constrained_loss
    if constrained_softmax is None:
        constrained_softmax = constrained_loss
    if constrained_softmax and not constrained_loss:
        raise UserError(
            f"--model_class {model_class}: --constrained_softmax true leaves the legal tokens only, and "
            "--constrained_loss false would compare more; pass both true, or both false"
        )
    return replace(objective, constrained_loss=constrained_loss, constrained_softmax=constrained_softmax)
