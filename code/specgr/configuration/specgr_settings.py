"""The hyper-parameters of SpecGR decoding."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SpecGRSettings:
    """The defaults are the published ones of SpecGR++. Raises ValueError if one cannot be."""

    draft_size: int = 20  # δ, items a round
    threshold: float = -1.8  # γ; -inf accepts all, inf none
    num_beams: int = 50  # β
    adjust_likelihood: bool = True  # the identification digit of a new item does not count; False: an ablation
    guided: bool = True  # later drafts begin with one of the beams; False: an ablation
    adaptive_exit: bool = True  # a row with K accepted is done; False: an ablation, all rounds are decoded

    def __post_init__(self) -> None:
        for name in ("draft_size", "num_beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        if self.threshold != self.threshold:
            raise ValueError("threshold is a number, not nan")


PUBLISHED = SpecGRSettings()
