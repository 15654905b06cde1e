"""The prompt of LC-Rec, as AtSpeed uses it: one string, no trailing space, followed by the identifier and EOS."""

from collections.abc import Sequence

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
