"""The prompt of LC-Rec, as AtSpeed uses it: one string, no trailing space, followed by the identifier and EOS."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from genrec.catalogue import Catalogue
from genrec.dataset import Sample
from genrec.errors import UserError

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n"
    "The user has interacted with items {items} in chronological order. "
    "Can you predict the next possible item that the user may expect?\n\n"
    "### Response:"
)


@dataclass(frozen=True)
class Encoded:
    """Samples as token ids."""

    prompts: list[list[int]]
    items: Tensor  # (n, L) long, the identifier of each sample's first label
    eos: int

    @property
    def responses(self) -> Tensor:
        """(n, L + 1) long: identifier and EOS."""
        return torch.cat([self.items, torch.full((len(self.items), 1), self.eos)], -1)


def encode_samples(
    tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue, samples: Sequence[Sample], cutoff: int
) -> Encoded:
    """Prompts and identifiers of `samples`. Raises UserError if a prompt with one item exceeds `cutoff`."""
    ids = catalogue.token_ids(tokenizer)
    row = {item: i for i, item in enumerate(sorted(catalogue.identifiers))}
    return Encoded(
        encode_prompts(tokenizer, catalogue, samples, cutoff),
        ids[[row[sample.labels[0]] for sample in samples]],
        tokenizer.eos_token_id,
    )


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue, samples: Sequence[Sample], cutoff: int
) -> list[list[int]]:
    """Token ids of every sample's prompt. Prompt, identifier and EOS fit into `cutoff` tokens: where they would not,
    the oldest items of the history are left out.

    Raises UserError if not even one item fits.
    """
    most = cutoff - catalogue.levels - 1
    text = {item: "".join(tokens) for item, tokens in catalogue.identifiers.items()}

    def encode(histories: list[tuple[int, ...]]) -> list[list[int]]:
        filled = [PROMPT.format(items=", ".join(text[item] for item in history)) for history in histories]
        return tokenizer(filled)["input_ids"] if filled else []

    prompts = encode([sample.history for sample in samples])
    for i, sample in enumerate(samples):
        history = sample.history
        while len(prompts[i]) > most:
            history = history[1:]
            if not history:
                raise UserError(f"--cutoff {cutoff}: a prompt with one item does not fit; pass a larger one")
            prompts[i] = encode([history])[0]
    return prompts


def left_pad(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, (B, P) both. What fills the padding is masked, so any token will do."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask
