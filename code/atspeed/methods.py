"""The ways to decode that are compared: transformers' `generate`, our decoder with gamma 0, and with a draft."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from beamsd import Clock, Result, Trie, beam_search

GENERATE, BASELINE, SPECULATIVE = "generate", "gamma 0", "speculative"


@dataclass(frozen=True)
class Lists:
    """K items a request, and what they cost where that is known."""

    sequences: Tensor  # (B, K, L) long
    scores: Tensor | None  # (B, K) float32, cumulative log-probability; None for one beam of `generate`
    found: Tensor  # (B,) long, legal sequences among the K
    target_calls: Tensor  # (B,) long
    accepted: Tensor | None  # (B, R) long, levels accepted a round, -1 after the end; None without a draft


Method = Callable[[Tensor, Tensor, int, Clock], Lists]  # (input_ids, attention_mask, K, clock)


def make_methods(
    target: PreTrainedModel, drafter: PreTrainedModel | None, items: Tensor, draft_width: int, gamma: int
) -> dict[str, Method]:
    """The methods by name. items: (n_items, L) token ids, on the device of the models."""
    trie = Trie(items)

    def ours(gamma: int) -> Method:
        def decode(ids: Tensor, mask: Tensor, width: int, clock: Clock) -> Lists:
            result = beam_search(
                target, ids, mask, trie=trie, width=width, draft=drafter, draft_width=draft_width, gamma=gamma,
                clock=clock,
            )  # fmt: skip
            return _lists(result, drafted=gamma > 0)

        return decode

    methods = {GENERATE: _generate(target, items), BASELINE: ours(0)}
    return methods | {SPECULATIVE: ours(gamma)} if drafter else methods


def _lists(result: Result, drafted: bool) -> Lists:
    accepted = result.accepted if drafted else None
    return Lists(result.sequences, result.scores, result.found, result.target_calls, accepted)


def _generate(target: PreTrainedModel, items: Tensor) -> Method:
    """Beam search of transformers, constrained by `prefix_allowed_tokens_fn` over a dictionary of prefixes."""
    length, sequences = items.shape[1], items.unique(dim=0).tolist()
    children: dict[tuple[int, ...], set[int]] = {}
    for sequence in sequences:
        for depth in range(length):
            children.setdefault(tuple(sequence[:depth]), set()).add(sequence[depth])
    allowed = {prefix: sorted(tokens) for prefix, tokens in children.items()}
    anything = allowed[()][:1]  # after an illegal prefix, which `generate` keeps at a score of -inf to fill its list

    def decode(ids: Tensor, mask: Tensor, width: int, clock: Clock) -> Lists:
        prompt = ids.shape[1]
        output = target.generate(
            input_ids=ids,
            attention_mask=mask,
            # Everything is said here, so that nothing leaks in from the checkpoint's generation_config.
            generation_config=GenerationConfig(
                num_beams=width, num_return_sequences=width, max_new_tokens=length, do_sample=False,
                length_penalty=1.0, early_stopping=False, pad_token_id=0, return_dict_in_generate=True,
                output_scores=True,
            ),
            prefix_allowed_tokens_fn=lambda _, sent: allowed.get(tuple(sent[prompt:].tolist()), anything),
        )  # fmt: skip
        batch = len(ids)
        scores = None
        if width > 1:
            scores = output.sequences_scores.view(batch, width) * length  # transformers divides by the length
        return Lists(
            sequences=output.sequences[:, prompt:].view(batch, width, length),
            scores=scores,
            found=torch.full((batch,), min(width, len(sequences))),
            target_calls=torch.full((batch,), length),
            accepted=None,
        )

    return decode
