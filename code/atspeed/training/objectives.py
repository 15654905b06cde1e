"""Training objectives by MODEL_CLASS, under the names of the release."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from atspeed.data.teacher_data import TRIE, VOCABULARY, check_alignment_over
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
    alignment_over: str = TRIE  # the tokens that are compared, of `ALIGNMENT_OVER`
    constrained_softmax: bool = True  # renormalise over these tokens; else all others count as one more token

    @property
    def imitates_beams(self) -> bool:
        """Cross-entropy on the teacher's beams themselves, without the teacher's probabilities."""
        return self.default_prefix is not None and self.align is None


def objectives(top_k: int = 20, density: bool = True) -> dict[str, Objective]:
    """Every class by name. top_k, density: of AtSpeed-S's loss."""
    return {
        "SFTModel": Objective(None),
        "WordKDModel": Objective(kl, ITEM, VOCABULARY, False),
        "TVDKDModel": Objective(tvd, ITEM, VOCABULARY, False),
        "SeqKDModel": Objective(None, TEACHER),
        "AtSpeedSModel": Objective(lambda q, p: topk_alignment(q, p, top_k, density), TEACHER),
        "AtSpeedRModel": Objective(tvd, TEACHER),
    }


MODEL_CLASSES = tuple(objectives())


def make_objective(
    model_class: str, top_k: int = 20, alignment_over: str | None = None, constrained_softmax: bool | None = None,
    constrained_alignment: bool | None = None, density: bool = True,
) -> Objective:  # fmt: skip
    """None leaves what the class is defined with: the trie for AtSpeed, the whole vocabulary for WordKD and TVDKD.

    constrained_alignment: False is the vocabulary, the ablation of the paper's constrained alignment. density: False
    leaves out AtSpeed-S's second term.

    Raises UserError for a class that does not exist, and for settings that contradict it or one another.
    """
    if model_class not in MODEL_CLASSES:
        raise UserError(f"--model_class {model_class}: choose from {', '.join(MODEL_CLASSES)}")
    objective = objectives(top_k, density)[model_class]
    asked = (alignment_over, constrained_softmax, constrained_alignment)
    if objective.align is None and any(each is not None for each in asked):
        raise UserError(
            f"--model_class {model_class} compares no distributions; leave out --alignment_over, "
            "--constrained_alignment and --constrained_softmax"
        )
    if not density and model_class != "AtSpeedSModel":
        raise UserError(f"--density false: --model_class {model_class} has no density term; AtSpeedSModel has")
    over = objective.alignment_over
    if alignment_over is not None:
        over = check_alignment_over(alignment_over)
    elif constrained_alignment is not None and constrained_alignment == (over == VOCABULARY):
        over = TRIE if constrained_alignment else VOCABULARY
    if constrained_alignment not in (None, over != VOCABULARY):
        raise UserError(
            f"--constrained_alignment {str(constrained_alignment).lower()} and --alignment_over {over} contradict one "
            "another; leave one out"
        )
    if constrained_softmax is None:
        constrained_softmax = over != VOCABULARY
    if constrained_softmax and over == VOCABULARY:
        raise UserError(
            f"--model_class {model_class}: --constrained_softmax true leaves some tokens only, and the whole "
            "vocabulary is compared; pass --alignment_over trie or level with it"
        )
    return replace(objective, alignment_over=over, constrained_softmax=constrained_softmax)
