"""The settings of an RQ-VAE, and their checks."""

from dataclasses import dataclass

from genrec.runtime.errors import UserError

METHODS = ("rq-vae", "rq-kmeans")
DISTINCT = ("sinkhorn", "digit")
OPTIMIZERS = ("adamw", "adagrad")


@dataclass(frozen=True)
class RQVAESettings:
    """What follows from it: a model, the same for the same embeddings on the same machine. Defaults: LC-Rec."""

    method: str = "rq-vae"  # or rq-kmeans: no network, codebooks in the space of the embeddings
    codebooks: tuple[int, ...] = (256, 256, 256, 256)  # codes, by level
    hidden: tuple[int, ...] = (2048, 1024, 512, 256, 128, 64)  # of the encoder; the decoder mirrors it
    latent: int = 32
    beta: float = 0.25  # weight of the commitment loss
    distinct: str = "sinkhorn"  # items of equal codes get other last ones; or digit: a level more tells them apart
    epsilon: float = 0.003  # of Sinkhorn on the last level; 0: nearest code. Nothing of it with a digit
    warmup_epochs: int = 2  # of the autoencoder alone, before codebooks are taken from its latents; LC-Rec: 0
    epochs: int = 30
    batch_size: int = 256
    optimizer: str = "adamw"  # or adagrad: SpecGR
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    eval_epochs: int = 5  # epochs between two looks at the collision rate, each of them a checkpoint
    seed: int = 0

    @classmethod
    def from_dict(cls, values: dict) -> "RQVAESettings":
        """What json made of `asdict(settings)`."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def check(self) -> None:
        """Raises UserError that names the flag."""
        for flag, choices in (("method", METHODS), ("distinct", DISTINCT), ("optimizer", OPTIMIZERS)):
            if getattr(self, flag) not in choices:
                raise UserError(f"--{flag} {getattr(self, flag)}: choose from {', '.join(choices)}")
        most, sizes = 26 - (self.distinct == "digit"), ",".join(map(str, self.codebooks))
        if not 1 <= len(self.codebooks) <= most:
            raise UserError(f"--codebooks {sizes}: give 1 to {most} levels")
