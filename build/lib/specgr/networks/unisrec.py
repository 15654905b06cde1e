"""UniSRec, the drafter of SpecGR_Aux: it knows an item by its text alone, so a new one as well as an old one.

Hou et al., KDD 2022: text embeddings, adapted by a mixture of whitening experts, through a small transformer; an item's
score is a cosine. Trained as the inductive variant: no item embeddings of its own.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus
from torch.utils.checkpoint import checkpoint

from genrec.evaluation.sasrec import CausalTransformer
from specgr.data.codes import NOTHING
from specgr.networks.model_folder import load_weights, save_weights

SETTINGS = "unisrec.json"
BLOCK = 2**16  # items whose experts are in memory at a time, 9,600 bytes each


@dataclass(frozen=True)
class UniSRecSettings:
    """The size of a UniSRec. The defaults are the published ones."""

    width: int  # d, the numbers of a text embedding
    max_history: int = 20
    hidden: int = 300
    inner: int = 256
    layers: int = 2
    heads: int = 2
    experts: int = 8
    dropout: float = 0.5
    adaptor_dropout: float = 0.2
    temperature: float = 0.07


class Adaptor(nn.Module):
    """A mixture of experts, each of which shifts and projects (parametric whitening), weighted by a noisy gate."""

    def __init__(self, width: int, hidden: int, experts: int, dropout: float):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(experts, width))
        self.project = nn.Parameter(torch.empty(experts, width, hidden).normal_(std=0.02))
        self.gate = nn.Parameter(torch.zeros(width, experts))
        self.noise = nn.Parameter(torch.zeros(width, experts))
        self.dropout = nn.Dropout(dropout)

    def forward(self, texts: Tensor) -> Tensor:
        """texts (..., d) -> (..., hidden). The gate is noisy in training only."""
        gate = texts @ self.gate
        if self.training:
            gate = gate + torch.randn_like(gate) * softplus(texts @ self.noise)
        # (x - b) W as x W - b W: needs no copy of x for each expert
        experts, _, hidden = self.project.shape
        projected = (self.dropout(texts) @ self.project.transpose(0, 1).flatten(1)).unflatten(-1, (experts, hidden))
        whitened = projected - (self.shift[:, None] @ self.project)[:, 0]
        return (gate.softmax(-1)[..., None] * whitened).sum(-2)


class UniSRec(nn.Module):
    def __init__(self, settings: UniSRecSettings):
        super().__init__()
        self.settings = settings
        self.adaptor = Adaptor(settings.width, settings.hidden, settings.experts, settings.adaptor_dropout)
        self.transformer = CausalTransformer(
            settings.hidden, settings.inner, settings.layers, settings.heads, settings.dropout, settings.max_history
        )
        nn.init.normal_(self.transformer.position.weight, std=0.02)

    def items(self, texts: Tensor) -> Tensor:
        """texts (n, d) -> (n, hidden) of norm 1, what histories are compared with.

        What the experts say of each is computed again for the gradients, in blocks, where there are many.
        """
        if len(texts) <= BLOCK:
            return normalize(self.adaptor(texts), dim=-1)
        adapted = [checkpoint(self.adaptor, part, use_reentrant=False) for part in texts.split(BLOCK)]
        return normalize(torch.cat(adapted), dim=-1)

    def histories(self, items: Tensor, texts: Tensor) -> Tensor:
        """items (B, T) long, oldest first, NOTHING where there is none; texts (n_items, d) -> (B, hidden) of norm 1."""
        order = (items == NOTHING).sort(stable=True).indices  # what there is, then nothing
        items = items.gather(1, order)
        used, where = items.clamp(min=0).unique(return_inverse=True)
        states = self.transformer(self.adaptor(texts[used])[where])
        last = ((items != NOTHING).sum(-1) - 1).clamp(min=0)
        return normalize(states[torch.arange(len(items), device=items.device), last], dim=-1)

    def save(self, folder: Path) -> None:
        """Write settings and weights, whole or not at all."""
        save_weights(self, folder, SETTINGS)

    @classmethod
    def load(cls, folder: Path) -> "UniSRec":
        """Read what `save` wrote, on the CPU, ready to evaluate. Raises UserError if it is missing or damaged."""
        return load_weights(lambda settings: cls(UniSRecSettings(**settings)), folder, SETTINGS, "UniSRec")
