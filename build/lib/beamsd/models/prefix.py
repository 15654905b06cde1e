"""A prefix shared by all prompts, such as the instruction before a user's items: read once, not once a request."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from beamsd.models.model_state import PerModel, WeightState
from beamsd.models.reader import KeysValues, Reader
from beamsd.tree import Tree

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Prefix:
    """A token prefix shared by prompts, and the KV caches of models over it.

    These are kept for as long as the model is what it was: after changes of its weights or adapters they are read again
    (see `WeightState` for what is seen of them).
    """

    def __init__(self, tokens: Sequence[int]):
        """tokens: at least one, the start-of-text token included where prompts have it."""
        self.tokens = tuple(int(token) for token in tokens)
        if not self.tokens:
            raise ValueError("a prefix must have at least one token")
        self._kept: PerModel[KeysValues] = PerModel(WeightState)

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]]) -> Prefix | None:
        """The longest prefix of all prompts, without the last token of any; None if it is empty."""
        columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
        shared = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
        return cls(shared) if shared else None

    def in_front(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor] | None:
        """Left-padded prompts (B, P) with the prefix in front of the padding, so that it stands in the same slots of
        every row; None if some prompt does not begin with it, or ends with it."""
        h, rank = len(self), attention_mask.long().cumsum(-1)
        if h >= rank.shape[1]:
            return None
        later = (rank > h) | ~attention_mask.bool()
        order = later.int().argsort(stable=True)
        input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        tokens = torch.tensor(self.tokens, device=input_ids.device)
        if not bool(((input_ids[:, :h] == tokens).all(1) & (rank[:, -1] > h)).all()):
            return None
        return input_ids, attention_mask

    def read_by(self, model: PreTrainedModel) -> KeysValues:
        """The model's keys and values of it, layer by layer. Raises ValueError if its changes could not be seen."""
        return self._kept(model, self._read)

    @torch.inference_mode()
    def _read(self, model: PreTrainedModel) -> KeysValues:
        ids = torch.tensor(self.tokens, device=model.device)[None]
        reader = Reader(model, len(self), longest=len(self))
        reader.catch_up(Tree.trunk(ids, None, len(self)), len(self) - 1)
        return [(layer.all_keys, layer.all_values) for layer in reader.layers]
