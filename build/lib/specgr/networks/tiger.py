"""TIGER: a T5 that reads the tokens of a history and generates those of the next item (Rajput et al., NeurIPS 2023)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad
from transformers import T5Config, T5ForConditionalGeneration

from beamsd import Tree
from specgr.data.codes import PAD
from specgr.networks.model_folder import load_weights, save_weights
from specgr.networks.t5_reader import T5Reader

SETTINGS = "tiger.json"
LENGTHS = 4  # parts of a training batch


@dataclass(frozen=True)
class TigerSettings:
    """The size of a TIGER. The defaults are the published ones for Games."""

    vocabulary_size: int  # `Codes.vocabulary_size`
    levels: int  # l, the tokens of an identifier
    d_model: int = 64
    d_ff: int = 1024
    layers: int = 4  # of the encoder, and of the decoder
    heads: int = 4
    d_kv: int = 64  # of a head
    dropout: float = 0.1
    projection: int = 64  # p, the size of SpecGR++ embeddings


class Tiger(nn.Module):
    """A T5 and the projection that makes embeddings of its encoder (SpecGR++)."""

    def __init__(self, settings: TigerSettings):
        super().__init__()
        self.settings = settings
        self.t5 = T5ForConditionalGeneration(
            T5Config(
                vocab_size=settings.vocabulary_size, d_model=settings.d_model, d_ff=settings.d_ff,
                num_layers=settings.layers, num_heads=settings.heads, d_kv=settings.d_kv,
                dropout_rate=settings.dropout, pad_token_id=PAD, decoder_start_token_id=PAD, eos_token_id=None,
            )
        )  # fmt: skip
        self.projection = nn.Linear(settings.d_model, settings.projection)

    @property
    def device(self) -> torch.device:
        return self.projection.weight.device

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids, attention_mask: (B, S) long -> hidden (B, S, d_model)."""
        return self.t5.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def encode_by_length(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`encode`, the rows in parts of like length that are cut where their padding begins, which it does not
        compute: about two thirds of the time where most histories are short. Hidden is 0 behind the cut."""
        width = attention_mask.shape[1]
        lengths = (attention_mask * torch.arange(1, width + 1, device=attention_mask.device)).amax(1)
        lengths, order = lengths.sort(stable=True)
        ends = torch.stack([part[-1] for part in lengths.chunk(LENGTHS)]).tolist()  # the only host sync here
        parts = []
        for rows, end in zip(order.chunk(LENGTHS), ends, strict=True):
            hidden = self.encode(input_ids[rows, :end], attention_mask[rows, :end])
            parts.append(pad(hidden, (0, 0, 0, width - end)))
        return torch.cat(parts)[order.argsort()]

    def embed(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """The mean of hidden (B, S, d_model) where attention_mask (B, S) is 1, projected -> (B, p) of norm 1."""
        weight = attention_mask[..., None].to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
        return normalize(self.projection(mean), dim=-1)

    def logits(self, hidden: Tensor, attention_mask: Tensor, tokens: Tensor) -> Tensor:
        """What follows every prefix of the identifiers, teacher-forced, M of them a row in one pass.

        hidden: (B, S, d_model). attention_mask: (B, S). tokens: (B, M, l) long.
        Returns (B, M, l, V): at level i the logits of token i given those before it.
        """
        batch, m, levels = tokens.shape
        tree = self.root(batch, 1 + m * (levels - 1))
        nodes = tokens.new_zeros(batch, m)
        for column in tokens[..., :-1].unbind(-1):
            nodes = tree.append(nodes, column)
        states = self.reader(hidden, attention_mask).catch_up(tree, 0).states
        chains = states[:, 1:].unflatten(1, (levels - 1, m)).transpose(1, 2)
        return self.head(torch.cat([states[:, :1, None].expand(-1, m, -1, -1), chains], 2))

    def root(self, batch: int, capacity: int) -> Tree:
        """Token trees that hold the decoder's start token, with room for `capacity` nodes."""
        start = torch.full((batch, 1), PAD, device=self.device)
        return Tree.trunk(start, None, capacity)

    def reader(self, hidden: Tensor, attention_mask: Tensor) -> T5Reader:
        """Reads token trees after histories. hidden: (B, S, d_model). attention_mask: (B, S)."""
        return T5Reader(self.t5.decoder, self.head, hidden, attention_mask, self.settings.levels)

    def head(self, states: Tensor) -> Tensor:
        """states (..., d_model) of the decoder -> logits (..., V)."""
        scale = self.settings.d_model**-0.5 if self.t5.config.scale_decoder_outputs else 1.0
        return self.t5.lm_head(states * scale)

    def save(self, folder: Path) -> None:
        """Write settings and weights, whole or not at all."""
        save_weights(self, folder, SETTINGS)

    @classmethod
    def load(cls, folder: Path) -> "Tiger":
        """Read what `save` wrote, on the CPU, ready to evaluate. Raises UserError if it is missing or damaged."""
        return load_weights(lambda settings: cls(TigerSettings(**settings)), folder, SETTINGS, "TIGER")
