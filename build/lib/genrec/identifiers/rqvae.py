"""RQ-VAE: quantises item embeddings to codes, level by level on the residual of the levels before.

Lee et al., CVPR 2022 (residual quantisation); Rajput et al., NeurIPS 2023 (TIGER: as item identifiers); Zheng et
al., ICDE 2024 (LC-Rec: the sizes, uniform assignment on the last level). Without the networks it is residual k-means.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import embedding, mse_loss

from genrec.identifiers.quantise import distances, identification_digits, nearest, resolve, sinkhorn
from genrec.identifiers.rqvae_settings import RQVAESettings
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path
from genrec.runtime.pretrained import check_finite


@dataclass(frozen=True)
class Quantised:
    codes: Tensor  # (n, L) long
    vectors: Tensor  # (n, latent): sum of the codes' vectors, with a straight-through gradient to the latents
    loss: Tensor  # (): codebook loss + beta x commitment loss, mean over levels


class RQVAE(nn.Module):
    """A residual-quantised autoencoder. Embeddings (n, d) are first centred and scaled to a mean square of 1."""

    def __init__(self, settings: RQVAESettings, width: int):
        """width: d, the size of an embedding."""
        super().__init__()
        self.settings, self.width = settings, width
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))
        sizes = [width, *settings.hidden, settings.latent]
        with_network = settings.method == "rq-vae"
        self.encoder = _mlp(sizes) if with_network else nn.Identity()
        self.decoder = _mlp(sizes[::-1]) if with_network else nn.Identity()
        latent = settings.latent if with_network else width
        self.codebooks = nn.ParameterList(torch.zeros(size, latent) for size in settings.codebooks)

    @property
    def device(self) -> torch.device:
        return self.scale.device

    def normalise(self, embeddings: Tensor) -> Tensor:
        """Normalises embeddings (n, d) of any float dtype and device to float32 on the model's device."""
        return (embeddings.to(self.device, torch.float32) - self.centre) / self.scale

    def quantise(self, latents: Tensor, epsilon: float = 0.0) -> Quantised:
        """Quantises latents (n, latent). epsilon: of Sinkhorn over these n on the last level; 0: nearest codes."""
        residual, codes, losses, beta = latents, [], [], self.settings.beta
        for level, codebook in enumerate(self.codebooks):
            if epsilon and level == len(self.codebooks) - 1:
                code = sinkhorn(distances(residual.detach(), codebook.detach()), epsilon).argmax(-1)
            else:
                code = nearest(residual.detach(), codebook.detach())
            vector = embedding(code, codebook)
            losses.append(mse_loss(vector, residual.detach()) + beta * mse_loss(residual, vector.detach()))
            residual = residual - vector.detach()
            codes.append(code)
        # The residual is latents minus all vectors, so the value is their sum; the gradient passes straight through.
        return Quantised(torch.stack(codes, -1), latents - residual.detach(), torch.stack(losses).mean())

    def forward(self, embeddings: Tensor, quantised: bool = True) -> Tensor:
        """Returns the loss of a batch (n, d): reconstruction + quantisation, or that of a plain autoencoder."""
        wanted = self.normalise(embeddings)
        if not quantised:
            return mse_loss(self.decoder(self.encoder(wanted)), wanted)
        epsilon = self.settings.entropy if self.settings.distinct == "sinkhorn" else 0.0
        found = self.quantise(self.encoder(wanted), epsilon)
        return mse_loss(self.decoder(found.vectors), wanted) + found.loss

    @torch.no_grad()
    def codes(self, embeddings: Tensor) -> Tensor:
        """Returns the nearest codes of embeddings (n, d), level by level: (n, L) long, on the CPU, maybe shared."""
        return torch.cat([self.quantise(self.encoder(x)).codes.cpu() for x in self._batches(embeddings)])

    @torch.no_grad()
    def resolve(self, embeddings: Tensor, codes: Tensor, old_codes: Tensor | None = None) -> Tensor:
        """Makes codes (n, L) of embeddings (n, d) distinct.

        Returns (n, L) as `quantise.resolve` or, if the settings say so, (n, L + 1) with the identification digit.
        old_codes (m, L or L + 1): codes of other items, which stay taken; free codes are then given nearest first, and
        digits continue their numbering.
        """
        old = 0 if old_codes is None else len(old_codes)
        all_codes = codes if old_codes is None else torch.cat([old_codes[:, : codes.shape[1]], codes])
        if self.settings.distinct == "digit":
            return torch.cat([codes, identification_digits(all_codes)[old:, None]], -1)
        return resolve(
            all_codes, lambda rows: self._last_cost(embeddings, codes, rows - old), self.settings.codebooks[-1],
            epsilon=0.0 if old else self.settings.entropy, old=torch.arange(len(all_codes)) < old,
        )[old:]  # fmt: skip

    def _last_cost(self, embeddings: Tensor, codes: Tensor, rows: Tensor) -> Tensor:
        """Returns the distances (…, K) of the residuals of rows (…) before the last level to that level's codes."""
        flat = rows.flatten()
        residual = self.encoder(self.normalise(embeddings[flat])) - self.sum_of_vectors(codes[flat, :-1])
        return distances(residual, self.codebooks[-1]).cpu().view(*rows.shape, -1)

    def sum_of_vectors(self, codes: Tensor) -> Tensor:
        """Sums the vectors of codes (n, l <= L) of the first l levels: (n, latent). Ignores an identification digit."""
        vectors = self.codebooks[0].new_zeros(len(codes), self.codebooks[0].shape[1])
        for code, codebook in zip(codes.to(self.device).T, self.codebooks, strict=False):
            vectors += codebook[code]
        return vectors

    @torch.no_grad()
    def error(self, embeddings: Tensor, codes: Tensor) -> float:
        """Returns the mean squared error of decoded codes (n, L), as a share of the embeddings' variance."""
        done, total = 0, 0.0
        for x in self._batches(embeddings):
            total += (self.decoder(self.sum_of_vectors(codes[done : done + len(x)])) - x).square().mean(-1).sum().item()
            done += len(x)
        return total / done

    def _batches(self, embeddings: Tensor) -> Iterator[Tensor]:
        return (self.normalise(part) for part in embeddings.split(4096))


def _mlp(sizes: list[int]) -> nn.Sequential:
    """Builds linear layers with ReLU between them."""
    layers = []
    for size, following in pairwise(sizes):
        linear = nn.Linear(size, following)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def save_rqvae(model: RQVAE, path: Path) -> None:
    """Saves a model with its settings as one safetensors file."""
    about = {"settings": asdict(model.settings), "width": model.width}
    with atomic_path(path) as partial:
        save_file(model.state_dict(), partial, {"about": json.dumps(about)})


def load_rqvae(path: Path, device: torch.device | str = "cpu") -> RQVAE:
    """Loads a model that `save_rqvae` wrote. Raises UserError if the file is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; it is written by: bash script/build_index.sh")
    tensors, about = read_tensors(path)
    model = RQVAE(RQVAESettings.from_dict(about["settings"]), about["width"]).to(device)
    model.load_state_dict(tensors)
    check_finite(tensors.items(), path)
    return model.eval()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Reads the tensors, onto the CPU, and metadata of a safetensors file. Raises UserError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
        return load_file(path), about
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: damaged or not ours ({error}); remove it, or pass --overwrite") from error
