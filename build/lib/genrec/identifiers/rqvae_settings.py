"""The settings of an RQ-VAE and their checks."""

from dataclasses import dataclass

from genrec.runtime.errors import UserError

METHODS = ("rq-vae", "rq-kmeans")
DISTINCT = ("sinkhorn", "digit")
OPTIMIZERS = ("adamw", "adagrad")


@dataclass(frozen=True)
class RQVAESettings:
    """Settings that, with the embeddings and the machine, determine an RQ-VAE. Defaults: LC-Rec."""

    method: str = "rq-vae"  # or rq-kmeans: no networks, codebooks in the space of the embeddings
    codebooks: tuple[int, ...] = (256, 256, 256, 256)  # number of codes, by level
    hidden: tuple[int, ...] = (2048, 1024, 512, 256, 128, 64)  # layer widths of the encoder; the decoder mirrors them
    latent: int = 32
    beta: float = 0.25  # weight of the commitment loss
    distinct: str = "sinkhorn"  # items with equal codes get other last codes; or digit: an extra level separates them
    # Of Sinkhorn on the last level; 0: nearest code; None: 0.003 for rq-vae, whose codebooks are trained with it, as in
    # LC-Rec, and 0 for rq-kmeans, whose error it ruins (docs/identifiers.md). Ignored when distinct="digit".
    epsilon: float | None = None
    warmup_epochs: int = 2  # of the plain autoencoder, before the codebooks are initialised; LC-Rec: 0
    epochs: int = 30
    batch_size: int = 256
    optimizer: str = "adamw"  # or adagrad, as in SpecGR
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    eval_epochs: int = 5  # epochs between evaluations of the collision rate, each with a checkpoint
    seed: int = 0

    @property
    def entropy(self) -> float:
        """The epsilon of Sinkhorn, given or by default."""
        if self.epsilon is not None:
            return self.epsilon
        return 0.003 if self.method == "rq-vae" else 0.0

    @classmethod
    def from_dict(cls, values: dict) -> "RQVAESettings":
        """Restores settings from the JSON of `asdict(settings)`."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def check(self) -> None:
        """Raises UserError that names the flag if a choice or the number of levels is invalid."""
        for flag, choices in (("method", METHODS), ("distinct", DISTINCT), ("optimizer", OPTIMIZERS)):
            if getattr(self, flag) not in choices:
                raise UserError(f"--{flag} {getattr(self, flag)}: choose from {', '.join(choices)}")
        most, sizes = 26 - (self.distinct == "digit"), ",".join(map(str, self.codebooks))
        if not 1 <= len(self.codebooks) <= most:
            raise UserError(f"--codebooks {sizes}: give 1 to {most} levels")
