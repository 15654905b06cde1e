"""The decoding methods under comparison: transformers' `generate`, and `beamsd` with every drafter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genrec.data.catalogue import Catalogue
from genrec.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from beamsd import Auto, Clock, Prefix, Result

GENERATE, BASELINE, SPECULATIVE = "generate", "gamma 0", "speculative"
TRIE, HYBRID, AUTO, STRICT = "trie", "hybrid", "auto", "strict"
RELAXED, COUPLED, SAMPLE = "relaxed", "coupled", "sample"
CAPTURED, AUTO_CAPTURED = "gamma 0 captured", "auto captured"
ON_PATHS = "speculative without tree attention"
COMPARED = (GENERATE, BASELINE, SPECULATIVE)  # what stage 4 reports
ALL = (GENERATE, BASELINE, SPECULATIVE, TRIE, HYBRID, AUTO, CAPTURED, AUTO_CAPTURED, RELAXED, COUPLED, SAMPLE, ON_PATHS)
ON_REQUEST = (ON_PATHS,)  # of all, those that are compared only where they are named
NEED_DRAFT = (SPECULATIVE, HYBRID, RELAXED, COUPLED, ON_PATHS)
GAMMA = 3  # levels that a draft drafts a round, unless told otherwise
AUTO_REQUESTS = 30  # after which auto has tried what it will try, ...
AUTO_COMPILED = 60  # ... and what it chose is compiled


@dataclass(frozen=True)
class DecodedLists:
    """K items a request, and their cost where it is known."""

    sequences: Tensor  # (B, K, L) long
    scores: Tensor | None  # (B, K) float32, cumulative log-probability; None for one beam of `generate`
    found: Tensor  # (B,) long, legal sequences among the K
    target_calls: Tensor  # (B,) long
    accepted: Tensor | None  # (B, R) long, levels accepted a round, -1 after the end; None without a draft
    target_tokens: int | None  # that the target's forwards read, a row, the prompt included; None: nobody counts
    draft_tokens: int | None
    seconds: float | None = None  # that decoding took, where another process has measured it


@dataclass(frozen=True)
class Method:
    # (input_ids, attention_mask, K, clock, seeds); one seed a request, for those that draw
    decode: Callable[[Tensor, Tensor, int, Clock, Sequence[int]], DecodedLists]
    draws: bool = False  # it draws at random, so its lists are not those of beam search
    peer: bool = False  # other software, whose lists may differ from those of `generate` and are counted
    warmup: int = 0  # requests that it needs at the least before it is timed
    auto: Auto | None = None  # whose report says what it chose

    @property
    def promises(self) -> bool:
        """Whether its lists are to be those of `generate`."""
        return not self.draws and not self.peer


def check_widths(widths: Sequence[int], draft_width: int) -> None:
    """Raises UserError for beam sizes of which a draft would propose too few."""
    if draft_width < max(widths):
        raise UserError(
            f"--draft_beam_size {draft_width}: must be at least {max(widths)}, the largest of --run_beam_sizes"
        )


def check_fit(catalogue: Catalogue, flag: str, *widths: int, gamma: int = 1) -> None:
    """Raises UserError for a K, of `flag`, or levels drafted a round that are more than the catalogue has.

    The default of gamma fits any catalogue: where there are fewer levels, all are drafted.
    """
    items = len(catalogue.items_of)
    if max(widths) > items:
        raise UserError(f"--{flag} {max(widths)}: must be at most {items}, the identifiers that there are to recommend")
    if gamma > max(catalogue.levels, GAMMA):
        raise UserError(f"--gamma {gamma}: must be at most {catalogue.levels}, the levels of an identifier")


def make_methods(
    target: PreTrainedModel, draft: PreTrainedModel | None, items: Tensor, draft_width: int | None, gamma: int,
    nodes: int | None = None, names: Sequence[str] = COMPARED, prefix: Prefix | None = None,
    constrained_softmax: bool = True,
) -> dict[str, Method]:  # fmt: skip
    """The methods by name, without those that need a draft where there is none.

    items: (n_items, L) token ids, on the device of the models. draft_width: N; None is twice the beams.
    nodes: that "trie" and "hybrid" draft a round at most. prefix: what all prompts begin with; `generate` reads it for
    each again. constrained_softmax: what the draft ranks by, see `beamsd.Settings`.
    """
    from beamsd import Auto, Program, Trie, beam_search

    trie, program = Trie(items), Program()

    def ours(drafted: bool = True, draws: bool = False, auto: Auto | None = None, **how: Any) -> Method:
        search = auto.beam_search if auto else beam_search

        def decode(ids: Tensor, mask: Tensor, width: int, clock: Clock, seeds: Sequence[int]) -> DecodedLists:
            result = search(
                target, ids, mask, trie=trie, width=width, draft=draft, clock=clock, seeds=seeds if draws else None,
                prefix=prefix, **how,
            )  # fmt: skip
            return _lists(result, drafted)

        warmup = AUTO_COMPILED if auto and "program" in how else AUTO_REQUESTS if auto else 0
        return Method(decode, draws, warmup=warmup, auto=auto)

    by_model: dict[str, Any] = {"gamma": gamma, "draft_width": draft_width}
    methods = {
        GENERATE: Method(_generate(target, items)),
        BASELINE: ours(drafted=False),
        SPECULATIVE: ours(**by_model, constrained_softmax=constrained_softmax),
        TRIE: ours(drafter="trie", nodes=nodes),
        HYBRID: ours(drafter="hybrid", draft_width=draft_width, nodes=nodes),
        AUTO: ours(auto=Auto(nodes=nodes, **by_model)),
        CAPTURED: ours(drafted=False, program=program),
        AUTO_CAPTURED: ours(auto=Auto(nodes=nodes, **by_model), program=program),
        RELAXED: ours(draws=True, verification="relaxed", **by_model),
        COUPLED: ours(draws=True, verification="coupled", **by_model),
        SAMPLE: ours(draws=True, verification="sample", drafter="trie", nodes=nodes),
        ON_PATHS: ours(tree_attention=False, constrained_softmax=constrained_softmax, **by_model),
    }
    return {name: methods[name] for name in names if draft is not None or name not in NEED_DRAFT}


def draft_methods(
    target: PreTrainedModel, *drafts: PreTrainedModel, names: Sequence[str], items: Tensor, draft_width: int,
    gamma: int, constrained_softmax: bool = True, verifications: Sequence[str] = (STRICT, RELAXED),
    prefix: Prefix | None = None,
) -> dict[str, Method]:  # fmt: skip
    """`generate`, gamma 0, and for every draft NAME strict, NAME relaxed and so on, by `verifications`."""
    methods = make_methods(target, None, items, draft_width, gamma, names=(GENERATE, BASELINE), prefix=prefix)
    for name, draft in zip(names, drafts, strict=True):
        made = make_methods(
            target, draft, items, draft_width, gamma, names=(SPECULATIVE, RELAXED, COUPLED),
            constrained_softmax=constrained_softmax, prefix=prefix,
        )  # fmt: skip
        for verification in verifications:
            methods[f"{name} {verification}"] = made[SPECULATIVE if verification == STRICT else verification]
    return methods


def _lists(result: Result, drafted: bool) -> DecodedLists:
    accepted = result.accepted if drafted else None
    return DecodedLists(
        result.sequences, result.scores, result.found, result.target_calls, accepted, sum(result.target_tokens),
        sum(result.draft_tokens),
    )  # fmt: skip


def _generate(
    target: PreTrainedModel, items: Tensor
) -> Callable[[Tensor, Tensor, int, Clock, Sequence[int]], DecodedLists]:
    """Beam search of transformers, constrained by `prefix_allowed_tokens_fn` over a dictionary of prefixes.

    What the checkpoint asks of `generate` (a repetition penalty, words that are suppressed, …) is left out: in
    transformers 5 it fills every field that a call leaves open.
    """
    from copy import copy

    import torch
    from transformers import GenerationConfig

    length, sequences = items.shape[1], items.unique(dim=0).tolist()
    children: dict[tuple[int, ...], set[int]] = {}
    for sequence in sequences:
        for depth in range(length):
            children.setdefault(tuple(sequence[:depth]), set()).add(sequence[depth])
    allowed = {prefix: sorted(tokens) for prefix, tokens in children.items()}
    plain = copy(target)  # the same weights; the caller's model keeps its own generation_config
    plain.generation_config = GenerationConfig()
    anything = allowed[()][:1]  # after an illegal prefix, which `generate` keeps at a score of -inf to fill its list

    def decode(ids: Tensor, mask: Tensor, width: int, clock: Clock, seeds: Sequence[int]) -> DecodedLists:
        prompt = ids.shape[1]
        output = plain.generate(
            input_ids=ids,
            attention_mask=mask,
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
        return DecodedLists(
            sequences=output.sequences[:, prompt:].view(batch, width, length),
            scores=scores,
            found=torch.full((batch,), min(width, len(sequences))),
            target_calls=torch.full((batch,), length),
            accepted=None,
            target_tokens=width * (prompt + length - 1),  # every beam is a row, from the prompt on
            draft_tokens=0,
        )

    return decode
