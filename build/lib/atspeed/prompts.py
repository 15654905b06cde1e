"""Prompts as token ids: the text of a template around the identifiers of a history, followed by identifier and EOS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from atspeed.template import LC_REC, PromptTemplate
from genrec.data.catalogue import Catalogue
from genrec.data.dataset import Sample
from genrec.runtime.errors import UserError


@dataclass(frozen=True)
class EncodedSamples:
    """Samples as token ids."""

    prompts: list[list[int]]
    items: Tensor  # (n, L) long, the identifier of each sample's first label
    eos: int

    @property
    def responses(self) -> Tensor:
        """(n, L + 1) long: identifier and EOS."""
        return torch.cat([self.items, torch.full((len(self.items), 1), self.eos)], -1)


class PromptEncoder:
    """Turns histories of items into prompts, as token ids.

    The items of a history are the ids of their identifiers' tokens, whatever the tokenizer would make of them as text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue, cutoff: int, template: PromptTemplate = LC_REC
    ):
        """tokenizer: to it, the catalogue's tokens were added (`add_tokens`). cutoff: prompt, identifier and EOS fit
        into so many tokens: where they would not, the oldest items of the history are left out.

        Raises UserError if not even one item fits, or a token of the catalogue is also a part of the prompt's text.
        """
        rows = catalogue.token_ids(tokenizer).tolist()
        self.identifiers = dict(zip(sorted(catalogue.identifiers), rows, strict=True))  # item -> its tokens' ids
        self.before, self.between, self.after = _text(tokenizer, catalogue, template)
        left = cutoff - len(self.before) - len(self.after) - catalogue.levels - 1
        self.most = (left + len(self.between)) // (catalogue.levels + len(self.between))  # items of a history
        if self.most < 1:
            raise UserError(f"--cutoff {cutoff}: a prompt with one item does not fit; pass a larger one")

    def encode(self, history: Sequence[int]) -> list[int]:
        """history: at least one item, oldest first."""
        items = [self.identifiers[item] for item in history[-self.most :]]
        separators = [self.between] * (len(items) - 1) + [self.after]
        return sum((item + text for item, text in zip(items, separators, strict=True)), self.before)


def encode_samples(
    tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue, samples: Sequence[Sample], cutoff: int,
    template: PromptTemplate = LC_REC,
) -> EncodedSamples:  # fmt: skip
    """Prompts and identifiers of `samples`. Raises UserError as `PromptEncoder` does."""
    encoder = PromptEncoder(tokenizer, catalogue, cutoff, template)
    items = torch.tensor([encoder.identifiers[sample.labels[0]] for sample in samples])
    return EncodedSamples([encoder.encode(sample.history) for sample in samples], items, tokenizer.eos_token_id)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue, samples: Sequence[Sample], cutoff: int,
    template: PromptTemplate = LC_REC,
) -> list[list[int]]:  # fmt: skip
    """Token ids of every sample's prompt. Raises UserError as `PromptEncoder` does."""
    encoder = PromptEncoder(tokenizer, catalogue, cutoff, template)
    return [encoder.encode(sample.history) for sample in samples]


def _text(
    tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue, template: PromptTemplate
) -> tuple[list[int], list[int], list[int]]:
    """The prompt's text as token ids: up to the items, between two of them, and behind them.

    It is read with one token in the place of each item, so that spaces beside items are what they are in a whole text.
    """
    token = catalogue.tokens[0]
    ids = template.fill(tokenizer, f"{token}{template.separator}{token}")
    of_items = set(tokenizer.convert_tokens_to_ids(catalogue.tokens))
    places = [place for place, one in enumerate(ids) if one in of_items]
    known = tokenizer.convert_ids_to_tokens([ids[place] for place in places])
    if also := [one for one in known if one != token] or known[2:]:
        raise UserError(
            f"identifier token {also[0]!r} is also a part of the prompt's text; give it another name in the index"
        )
    if len(places) < 2:
        raise UserError(f"the tokenizer does not read identifier token {token!r} as one; give it another name")
    first, second = places
    after = ids[second + 1 :]
    # Some end every text with EOS; here the response is yet to come.
    if after and after[-1] == tokenizer.eos_token_id and not template.chat:
        del after[-1]
    return ids[:first], ids[first + 1 : second], after


def left_pad(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, (B, P) both. What fills the padding is masked, so any token will do."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask
