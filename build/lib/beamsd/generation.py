"""Entry points through transformers: `speculate` for `generate(custom_generate=…)`, and the functions of BeamSD.

Nothing here decodes: it reads a GenerationConfig, calls the search, and gives its result the form of `generate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import cached_property, partial
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation import EosTokenCriteria, GenerateBeamDecoderOnlyOutput, MaxLengthCriteria

from beamsd.compat import PASSED_BY_GENERATE, passed_cache
from beamsd.models.prefix import Prefix
from beamsd.models.support import check_model
from beamsd.search.beam_search import Result, SpanTimer, beam_search
from beamsd.speed.auto import Auto
from beamsd.speed.clock import Clock
from beamsd.speed.program import Program
from beamsd.trie import Trie, check_trie

if TYPE_CHECKING:
    from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

BEAM_SEARCH, GREEDY_SEARCH = "beam_search", "greedy_search"  # names of generation modes
# What the search cannot give.
NOT_KEPT = ("output_attentions", "output_hidden_states", "output_logits")


@dataclass
class SpeculativeOutput(GenerateBeamDecoderOnlyOutput):
    """What `generate` returns, and what it cost.

    As in `generate`, `sequences` (B * num_return_sequences, P + longest answer) hold the prompt, `sequences_scores` are
    divided by the length to the power of `length_penalty`, and `beam_indices` say which beam every token continued, -1
    after the end. Where fewer sequences are legal, the others hold padding only and score -inf. Under
    verification="sample", sequences stand in the order of drawing, and `sequences_scores` are their log-probabilities
    over the trie.
    """

    target_calls: Tensor | None = None  # (B,) long, forwards of the target that each request needed
    accepted: Tensor | None = None  # (B, R) long, drafted levels accepted in each round; -1 after the end
    found: Tensor | None = None  # (B,) long, legal sequences among the num_beams of each request
    log_probs: Tensor | None = None  # (B * num_return_sequences,), of the whole sequence, whatever its length
    perturbed_scores: Tensor | None = None  # (B * num_return_sequences,), by which "sample" ranks; None otherwise
    seconds: dict[str, float] | None = None  # spent in draft, target and verify; None unless timed


@dataclass(frozen=True)
class speculate:
    """Speculative beam search as `model.generate(…, custom_generate=speculate(draft))`.

    draft: a smaller model with the same tokenizer, or None. drafter: who drafts, the "model", the "trie", both as
    "hybrid", or "none" (plain beam search with tree attention, gamma 0); "auto" measures which takes the least time
    (see `Auto`, and `report()`), and without a draft model it leaves "trie" and "none".
    trie: the legal sequences; without one, whatever `generate` would allow. Sequences end as in `generate`: after
    max_new_tokens, or with EOS, which is a legal token where a sequence of the trie ends.
    draft_width: N, beams that the draft model drafts a level, at least num_beams; None is twice num_beams.
    gamma: levels that it drafts a round. nodes: what "trie" and "hybrid" draft a round at most. constrained_softmax: by
    what it ranks. See `Settings`.
    verification: "strict" gives what `generate` gives without; "relaxed", "coupled" and "sample" draw at random and
    take `seeds`, one integer a request (see `Settings`). clock: sums the seconds of draft, target and verify.
    prefix: what prompts begin with, to be read once for all calls, and again when weights or adapters have changed.
    capture: run with static shapes, on CUDA as one graph a round, on the CPU with compiled models (see `Program`).

    Raises ValueError, when `generate` calls it, for whatever it cannot honour.
    """

    draft: PreTrainedModel | None
    trie: Trie | None = None
    drafter: str = "auto"
    draft_width: int | Sequence[int] | None = None
    gamma: int = 3
    nodes: int | None = None
    constrained_softmax: bool = True
    verification: str = "strict"
    seeds: Sequence[int] | None = None
    clock: SpanTimer | None = None
    prefix: Prefix | None = None
    capture: bool = False

    def __post_init__(self):
        check_trie(self.trie)

    @cached_property
    def program(self) -> Program | None:
        """What has been captured so far."""
        return Program() if self.capture else None

    @cached_property
    def auto(self) -> Auto:
        """What has been learnt from the requests so far."""
        return Auto(self.draft_width, self.gamma, self.nodes)

    def report(self) -> str:
        """What drafter="auto" chose, and why."""
        return self.auto.report()

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> SpeculativeOutput | Tensor:
        """The decoding loop that `generate` calls. input_ids: (B * K, P), every prompt K times."""
        _check_config(generation_config)
        check_model(model)
        K = generation_config.num_beams or 1
        prompts, mask = input_ids[::K], model_kwargs.get("attention_mask")
        mask = torch.ones_like(prompts) if mask is None else mask[::K]
        _check_inputs(model_kwargs, mask, K)
        greedy = K == 1 and self.verification == "strict"  # it stops at the first EOS and hands out logits
        sampled = self.verification == "sample"
        own_criteria = any(not isinstance(c, EosTokenCriteria | MaxLengthCriteria) for c in stopping_criteria)
        search = self.auto.beam_search if self.drafter == "auto" else partial(
            beam_search, drafter=self.drafter, draft_width=self.draft_width, gamma=self.gamma, nodes=self.nodes
        )  # fmt: skip
        result = search(
            model,
            prompts.to(model.device),
            mask.to(model.device),
            draft=self.draft,
            clock=self.clock,
            prefix=self.prefix,
            program=self.program,
            width=K,
            trie=self.trie,
            max_new_tokens=generation_config.max_length - input_ids.shape[1],
            eos_token_id=generation_config.eos_token_id,
            length_penalty=0.0 if sampled else generation_config.length_penalty,
            early_stopping="never" if sampled else greedy or generation_config.early_stopping,
            constrained_softmax=self.constrained_softmax,
            verification=self.verification,
            seeds=self.seeds,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria if own_criteria else None,
            raw=greedy and len(logits_processor) > 0,
        )
        output = _output(result, prompts, generation_config, fill=_fill(generation_config, greedy))
        if sampled:
            output.perturbed_scores, output.sequences_scores = output.sequences_scores, output.log_probs
        return output if generation_config.return_dict_in_generate else output.sequences


def replace_beam_search_with_TreeAttn(model: PreTrainedModel) -> PreTrainedModel:
    """Make `model.generate` use tree attention wherever it would use beam search; returns the same model.

    Greedy search, sampling and calls with a `custom_generate` of their own stay as they are.
    """

    def generate(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        config = deepcopy(kwargs.get("generation_config") or self.generation_config)
        config.update(**{name: value for name, value in kwargs.items() if name != "generation_config"})
        if "custom_generate" not in kwargs and config.get_generation_mode(kwargs.get("assistant_model")) == BEAM_SEARCH:
            kwargs["custom_generate"] = speculate(None, drafter="none")
        return type(self).generate(self, *args, **kwargs)

    model.generate = MethodType(generate, model)
    return model


def beam_search_by_TreeAttn(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor] | Tensor,
    max_new_tokens: int | None = None,
    beam_size: int | None = None,
    **options: object,
) -> SpeculativeOutput:
    """Beam search with tree attention and no draft. inputs: what a tokenizer returns, or input_ids (B, P).

    What is left out comes from `model.generation_config`, as in `generate`; options: any others of `generate`, and
    `trie`.
    """
    sizes = {"max_new_tokens": max_new_tokens, "num_beams": beam_size}
    options |= {name: size for name, size in sizes.items() if size is not None}
    return _generate(model, None, inputs, {"drafter": "none", **options})


def beam_search_by_SD(
    target_model: PreTrainedModel,
    draft_model: PreTrainedModel,
    inputs: Mapping[str, Tensor] | Tensor,
    **options: object,
) -> SpeculativeOutput:
    """Speculative beam search with the sizes of the two generation configs.

    The target's: num_beams, num_return_sequences, max_new_tokens. The draft's: num_beams is the draft width (twice the
    target's if unset), max_new_tokens is gamma (3 if unset). inputs: what a tokenizer returns, or input_ids (B, P).
    options: any of `generate`, and `trie`, `verification`, `seeds`, `clock` of `speculate`.
    """
    sizes = draft_model.generation_config
    options = {"drafter": "model", "draft_width": sizes.num_beams, "gamma": sizes.max_new_tokens, **options}
    return _generate(target_model, draft_model, inputs, {k: v for k, v in options.items() if v is not None})


def beam_search_by_SD_4timing(
    target_model: PreTrainedModel,
    draft_model: PreTrainedModel,
    inputs: Mapping[str, Tensor] | Tensor,
    **options: object,
) -> SpeculativeOutput:
    """The same search with a clock: `seconds` of the output says what draft, target and verify took."""
    clock = Clock(target_model.device)
    output = beam_search_by_SD(target_model, draft_model, inputs, clock=clock, **options)
    output.seconds = clock.seconds()
    return output


def _generate(
    model: PreTrainedModel, draft: PreTrainedModel | None, inputs: Mapping[str, Tensor] | Tensor, options: dict
) -> SpeculativeOutput:
    if not isinstance(inputs, Mapping):
        inputs = {"input_ids": inputs}
    ours = {field.name for field in fields(speculate)} & set(options)
    decode = speculate(draft, **{name: options.pop(name) for name in ours})
    # Call the class method, to bypass a `generate` that was patched onto the instance.
    return type(model).generate(
        model, **inputs, **options, return_dict_in_generate=True, custom_generate=decode
    )  # fmt: skip


def _check_config(config: GenerationConfig) -> None:
    if config.do_sample:
        raise ValueError(
            "do_sample=True, perhaps from the checkpoint's generation_config: speculate draws by "
            "verification='relaxed', 'coupled' or 'sample' only; pass do_sample=False"
        )
    if config.get_generation_mode() not in (BEAM_SEARCH, GREEDY_SEARCH):
        raise ValueError(f"speculate is for beam search, not for {config.get_generation_mode()}")
    for name in NOT_KEPT:
        if getattr(config, name):
            raise ValueError(f"{name}=True: a token tree has no such output; leave it out")
    if config.cache_implementation not in (None, "dynamic", "static", "hybrid"):
        raise ValueError(
            f"cache_implementation={config.cache_implementation!r}: a token tree keeps a cache of its own; leave it out"
        )


def _check_inputs(model_kwargs: Mapping[str, Any], mask: Tensor, width: int) -> None:
    # Of a model that also reads pictures, `generate` passes what it has read of them: {}, where there are none.
    given = (name for name, value in model_kwargs.items() if value is not None and not _is_empty(value))
    others = [name for name in given if name not in PASSED_BY_GENERATE]
    if others:
        raise ValueError(f"speculate takes input_ids and attention_mask, not {', '.join(sorted(others))}")
    cache = passed_cache(model_kwargs)
    if cache is not None and cache.get_seq_length():
        raise ValueError("speculate reads the whole prompt itself: pass no cache (past_key_values) of your own")
    positions = model_kwargs.get("position_ids")
    if positions is not None and ((positions[::width] != mask.cumsum(-1) - 1) & mask.bool()).any():
        raise ValueError("speculate derives the positions from attention_mask: pass no position_ids of your own")


def _fill(config: GenerationConfig, greedy: bool) -> int:
    """The token that transformers fills finished sequences up with."""
    pad, eos = config.pad_token_id, config.eos_token_id
    if eos is not None:
        eos = int(torch.as_tensor(eos).view(-1)[0])
        # Its beam search takes a padding token 0 for none.
        return eos if pad is None or (not greedy and int(pad) == 0) else int(pad)
    return 0 if pad is None else int(pad)


def _output(result: Result, prompts: Tensor, config: GenerationConfig, fill: int) -> SpeculativeOutput:
    B, K, _ = result.sequences.shape
    R = config.num_return_sequences or 1

    def returned(each: Tensor) -> Tensor:
        return each[:, :R].flatten(0, 1).to(prompts.device)

    answers = returned(result.sequences.where(result.ranks >= 0, fill))
    batch = torch.arange(B, device=result.ranks.device)[:, None, None] * K
    indices = returned((result.ranks + batch).where(result.ranks >= 0, -1)).int()
    longest = int(returned(result.lengths).max())
    return SpeculativeOutput(
        sequences=torch.cat([prompts.repeat_interleave(R, 0), answers[:, :longest]], 1),
        sequences_scores=returned(result.scores),
        beam_indices=indices[:, :longest],
        log_probs=returned(result.log_probs),
        target_calls=result.target_calls,
        accepted=result.accepted,
        found=result.found,
    )


def _is_empty(value: object) -> bool:
    return isinstance(value, Mapping) and not value
