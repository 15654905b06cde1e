"""Training of an RQ-VAE: k-means initialisation of the codebooks, then epochs that can be resumed."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from genrec.identifiers.quantise import collision_rate, kmeans, nearest
from genrec.identifiers.rqvae import RQVAE, RQVAESettings, read_tensors
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path
from genrec.runtime.progress import progress_bar

logger = logging.getLogger(__name__)

SAMPLE = 2**16  # items from which the scale and the initial codebooks are estimated


@dataclass(frozen=True)
class EpochMetrics:
    """Metrics of a model after an epoch; rq-kmeans has one entry, for epoch 0."""

    epoch: int  # warm-up included
    loss: float | None  # mean over the epoch's items
    collision_rate: float  # of the nearest codes
    resolved_rate: float  # after resolution
    resolved_error: float  # of the resolved codes, as RQVAE.error


@dataclass(frozen=True)
class Fit:
    model: RQVAE  # in eval mode
    looks: list[EpochMetrics]
    best: EpochMetrics  # metrics of `model`


def fit_rqvae(
    embeddings: Tensor, settings: RQVAESettings, *, rows: Tensor | None = None, work: Path | None = None,
    device: torch.device | str = "cpu",
) -> Fit:  # fmt: skip
    """Fit a model to embeddings (n, d), or to some of their rows (m,) long; the same seed gives the same model.

    RQ-VAE is trained by gradient descent and evaluated every `eval_epochs`. The weights with the lowest collision rate
    after resolution (always 0 with an identification digit) are returned, those with the lowest error if several are
    equal. work: a folder for this fit alone, from which a killed run resumes with the same result.
    Raises UserError for settings out of range, or a `work` begun with other settings.
    """
    settings.check()
    embeddings = embeddings if rows is None else embeddings[rows]
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = RQVAE(settings, embeddings.shape[1]).to(device)
    training = Training(model, work and work / "checkpoint.safetensors")
    first = settings.warmup_epochs if settings.method == "rq-vae" else 0
    last = first + settings.epochs if settings.method == "rq-vae" else 0
    sample = embeddings[_order(len(embeddings), settings.seed, -1)[:SAMPLE]]
    if not training.restore():
        scale(model, sample)
        if not last:
            with progress_bar(len(model.codebooks), "k-means", "level") as bar:
                initialise(model, sample, bar.update)
            training.look(embeddings, 0, None)
    epochs = range(training.epoch, last)
    if epochs:
        read = epochs.start * len(embeddings)
        bar = progress_bar(last * len(embeddings), "RQ-VAE", "item", initial=read, unit_scale=True)
    for epoch in epochs:
        if epoch == first:
            initialise(model, sample)
        loss = training.run_epoch(embeddings, _order(len(embeddings), settings.seed, epoch), epoch >= first, bar)
        done = epoch + 1 - first
        if done > 0 and (done % settings.eval_epochs == 0 or epoch + 1 == last):
            training.look(embeddings, epoch + 1, loss)
            training.save()
    if epochs:
        bar.close()
    model.load_state_dict(training.best)
    return Fit(model.eval(), training.looks, min(training.looks, key=_merit))


def _merit(look: EpochMetrics) -> tuple[float, float, int]:
    return look.resolved_rate, look.resolved_error, look.epoch


def _order(n: int, seed: int, epoch: int) -> Tensor:
    """Returns the order of items in an epoch; a resumed run uses the same, as it depends on seed and epoch alone."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch + 1))


def scale(model: RQVAE, sample: Tensor) -> None:
    """Sets centre and scale from a sample (n, d) of embeddings."""
    sample = sample.to(model.device, torch.float32)
    model.centre.copy_(sample.mean(0))
    model.scale.copy_((sample - model.centre).square().mean().sqrt().clamp(min=1e-12))


@torch.no_grad()
def initialise(model: RQVAE, sample: Tensor, advance: Callable[[], object] = lambda: None) -> None:
    """Initialises the codebooks by k-means, level by level, on the latents of a sample (n, d) of embeddings."""
    residual = model.encoder(model.normalise(sample))
    for level, codebook in enumerate(model.codebooks):
        codebook.copy_(kmeans(residual, len(codebook), seed=model.settings.seed + level))
        residual = residual - codebook[nearest(residual, codebook)]
        advance()


class Training:
    """The state of a training run: model, optimizer, and metrics so far."""

    def __init__(self, model: RQVAE, path: Path | None):
        """path: of the checkpoint; None: no checkpoint."""
        self.model, self.path, self.epoch = model, path, 0
        self.looks: list[EpochMetrics] = []
        self.best: dict[str, Tensor] = {}
        settings = model.settings
        optimizer = {"adamw": torch.optim.AdamW, "adagrad": torch.optim.Adagrad}[settings.optimizer]
        self.optimizer = optimizer(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def run_epoch(self, embeddings: Tensor, order: Tensor, quantised: bool, bar: tqdm) -> float:
        """Trains on the rows of `order` (m,) and returns the mean loss. quantised: as in RQVAE.forward."""
        self.model.train()
        total = torch.zeros((), device=self.model.device)
        for batch in order.split(self.model.settings.batch_size):
            loss = self.model(embeddings[batch], quantised)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.detach() * len(batch)
            bar.update(len(batch))
        return total.item() / len(order)

    def look(self, embeddings: Tensor, epoch: int, loss: float | None) -> None:
        """Records the metrics after an epoch, and keeps the weights if they are the best so far."""
        self.model.eval()
        codes = self.model.codes(embeddings)
        resolved = self.model.resolve(embeddings, codes)
        error = self.model.error(embeddings, resolved)
        look = EpochMetrics(epoch, loss, collision_rate(codes), collision_rate(resolved), error)
        if not math.isfinite(error):
            rate = self.model.settings.learning_rate
            raise UserError(f"--learning_rate {rate}: the training diverged by epoch {epoch}; choose a lower one")
        self.epoch = epoch
        self.looks.append(look)
        if min(self.looks, key=_merit) is look:
            self.best = {name: weight.detach().clone() for name, weight in self.model.state_dict().items()}
        logger.info(f"epoch {epoch}: collision rate {look.collision_rate:.2%}, resolved {look.resolved_rate:.2%}, "
                    f"error {error:.4f} of the variance")  # fmt: skip

    def save(self) -> None:
        if self.path is None:
            return
        tensors = {f"model.{name}": weight for name, weight in self.model.state_dict().items()}
        tensors |= {f"best.{name}": weight for name, weight in self.best.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        about = {"settings": asdict(self.model.settings), "looks": [asdict(look) for look in self.looks]}
        with atomic_path(self.path) as partial:
            save_file({name: t.contiguous() for name, t in tensors.items()}, partial, {"about": json.dumps(about)})

    def restore(self) -> bool:
        """Resumes from the checkpoint; returns whether there is one. Raises UserError if its settings differ."""
        if self.path is None or not self.path.is_file():
            return False
        # The optimiser takes its moments to the device and leaves its count of steps on the CPU, where it is read.
        tensors, about = read_tensors(self.path)
        if RQVAESettings.from_dict(about["settings"]) != self.model.settings:
            raise UserError(f"{self.path}: was made with other settings; remove it, or pass --overwrite")
        self.model.load_state_dict(_with_prefix("model.", tensors))
        self.best = {name: weight.to(self.model.device) for name, weight in _with_prefix("best.", tensors).items()}
        state = self.optimizer.state_dict()
        for name, value in _with_prefix("optimizer.", tensors).items():
            index, _, moment = name.partition(".")
            state["state"].setdefault(int(index), {})[moment] = value
        self.optimizer.load_state_dict(state)
        self.looks = [EpochMetrics(**look) for look in about["looks"]]
        self.epoch = self.looks[-1].epoch
        return True


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
