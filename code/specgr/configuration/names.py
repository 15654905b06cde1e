"""The names of the recommenders that are compared, and what each of them needs."""

from collections.abc import Sequence

from genrec.runtime.errors import UserError

PLAIN, CONSTRAINED, UNISREC, ENCODER = "TIGER", "TIGER constrained", "UniSRec", "SpecGR++ encoder"
SASREC_T = "SASRec_T"  # from texts alone, as UniSRec
AUX, PLUS = "SpecGR_Aux", "SpecGR++"
PLUS_1 = "SpecGR++ after stage 1"  # an ablation: without the fine-tuning of stage 2
NEIGHBOURS, SPECGR_NEIGHBOURS = "neighbours", "SpecGR neighbours"  # the drafter that is not trained, and SpecGR with it
LAST_NEIGHBOURS, MEAN_NEIGHBOURS = "nearest to the last item", "nearest to the mean"  # semantic nearest neighbours
NEEDS = {
    PLAIN: ("tiger",), CONSTRAINED: ("tiger",), NEIGHBOURS: (), LAST_NEIGHBOURS: (), MEAN_NEIGHBOURS: (),
    SASREC_T: ("sasrec_t",), UNISREC: ("unisrec",), ENCODER: ("stage2",),
    SPECGR_NEIGHBOURS: ("tiger",), AUX: ("tiger", "unisrec"), PLUS_1: ("stage1",), PLUS: ("stage2",),
}  # fmt: skip
DECAY = {NEIGHBOURS: 0.8, LAST_NEIGHBOURS: 0.0, MEAN_NEIGHBOURS: 1.0}  # see `NeighbourDrafter`
SPECULATIVE = (SPECGR_NEIGHBOURS, AUX, PLUS_1, PLUS)


def check_methods(names: Sequence[str], among: Sequence[str] = tuple(NEEDS), hint: str = "") -> None:
    """Raises UserError for a method that does not exist, or is not `among` those that a command takes."""
    for name in names:
        if name not in among:
            raise UserError(f"--methods {name}: choose from {', '.join(among)}{hint}")
