"""What each MODEL_CLASS is trained to do. The names are those that users of the release know."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from atspeed.losses import kl, topk_alignment, tvd
from genrec.errors import UserError


@dataclass(frozen=True)
class Objective:
    """loss = (1 − α) · recommendation loss + α · alignment loss; without an alignment, the recommendation loss."""

    align: Callable[[Tensor, Tensor], Tensor] | None  # (student, teacher) logits -> loss per position
    needs_beams: bool = False  # the target's beams, else the true item's prefix
    needs_item_logits: bool = False  # the target's full-vocabulary logits on the true item's prefix
    imitates_beams: bool = False  # cross-entropy on the beams themselves


MODEL_CLASSES = ("SFTModel", "WordKDModel", "TVDKDModel", "SeqKDModel", "AtSpeedSModel", "AtSpeedRModel")


def make_objective(model_class: str, top_k: int) -> Objective:
    """Raises UserError for a class that does not exist."""
    objectives = {
        "SFTModel": Objective(None),
        "WordKDModel": Objective(kl, needs_item_logits=True),
        "TVDKDModel": Objective(tvd, needs_item_logits=True),
        "SeqKDModel": Objective(None, needs_beams=True, imitates_beams=True),
        "AtSpeedSModel": Objective(lambda q, p: topk_alignment(q, p, top_k), needs_beams=True),
        "AtSpeedRModel": Objective(tvd, needs_beams=True),
    }
    if model_class not in objectives:
        raise UserError(f"--model_class {model_class}: choose from {', '.join(MODEL_CLASSES)}")
    return objectives[model_class]
