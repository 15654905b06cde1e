"""Which numbers a flag takes, by its name, whatever the program; checked before any work."""

import math
from dataclasses import dataclass

from genrec.runtime.errors import UserError


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`, both included."""

    low: float
    high: float = math.inf
    above: bool = False  # `low` itself is left out

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"in {self.low:.10g} … {self.high:.10g}"
        return f"above {self.low:g}" if self.above else f"at least {self.low:g}"

    def check(self, where: str, value: float | tuple[float, ...]) -> None:
        """Raises UserError that begins with `where`, the value's flag or key, for a number that is not in the range."""
        values = value if isinstance(value, tuple) else (value,)
        if not all(one in self for one in values):
            said = ",".join(f"{one:g}" if isinstance(one, float) else str(one) for one in values)
            raise UserError(f"{where} {said}: must be {self}" + (", each" if len(values) > 1 else ""))


COUNTS = (
    "batch_size", "batch_sizes", "beam_size", "beams", "cutoff", "draft_beam_size", "draft_size", "draft_sizes",
    "draft_width", "encode_batch_size", "epochs", "eval_epochs", "gamma", "hidden", "k", "latent", "layers", "levels",
    "lora_alpha", "lora_r", "max_history", "max_tokens", "max_users", "micro_batch_size", "min_train_items", "n_users",
    "nodes", "num_beams", "patience", "repetitions", "requests", "run_beam_sizes", "select_beam_size", "shard_size",
    "top_k", "vocabulary", "width",
)  # fmt: skip
MAY_BE_0 = (
    "beta", "epsilon", "item_core", "noise", "save_steps", "select_users", "user_core", "warmup", "warmup_epochs",
    "warmup_steps", "weight_decay",
)  # fmt: skip
ABOVE_0 = ("learning_rate", "max_eval_steps", "ratios", "temperature")
SHARES = ("alpha", "new_items", "r_original", "r_student")
RANGES = {
    **dict.fromkeys(COUNTS, Range(1)),
    **dict.fromkeys(MAY_BE_0, Range(0)),
    **dict.fromkeys(ABOVE_0, Range(0, above=True)),
    **dict.fromkeys(SHARES, Range(0, 1)),
    "codebooks": Range(2),
    "lora_dropout": Range(0, 0.99),
    "mean_length": Range(4),
    "n_items": Range(50),
    "seed": Range(0, 2**32 - 1),  # as numpy's
}
