"""The settings of a search, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from beamsd.models.support import check_length, check_model, check_rotation
from beamsd.search.beams import Scoring
from beamsd.search.constraints import Constraint, TrieConstraint, VocabularyConstraint, constrained
from beamsd.search.finished import Ending
from beamsd.search.plan import TRIE_DRAFTERS, SearchPlan, Verification
from beamsd.search.scoring import Sampled, StochasticBeams, Trace, likelihood
from beamsd.search.verification import Coupled, Relaxed, Strict
from beamsd.trie import Trie, check_trie

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

DRAFTERS = ("model", *TRIE_DRAFTERS, "none")
VERIFICATIONS = ("strict", "relaxed", "coupled", "sample")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The keywords of `beam_search`. Those that share a name with a `generate` flag mean the same.

    width: K, beams kept and returned. drafter: who drafts: "model", the draft model, gamma levels a round (0 is plain
    beam search); "trie", every legal continuation as deep as `nodes` allow, without a model; "hybrid", in the first
    round the draft model for the second level and the trie below, later the trie; "none".
    draft_width: N >= K, beams that the draft model drafts a level, or one number a level; None is 2 K. For "hybrid" one
    number is that of the second level, under all first tokens; two are those of the first and second level.
    nodes: "trie" drafts at most so many a round, "hybrid" too beyond what the draft ranks; None: 256, or 4 K if more.
    constrained_softmax: under a trie the draft ranks by its softmax over the legal tokens, which is what AtSpeed's
    losses train; False, and "relaxed" always: over the whole vocabulary, as the target is ranked.

    trie: the legal sequences; None is any text. max_new_tokens: T; may be left out under a trie.
    blocked: (B, n_states) bool, states of the trie that are not legal for one request of the batch; see `Trie.blocked`.
    eos_token_id: token or tokens that end a sequence. length_penalty: 0 leaves scores as sums of log-probabilities.

    verification: "strict" is the target's own beam search (AtSpeed, Algorithm 1); "relaxed" draws K beams a level, and
    keeps the draft's draws where the target agrees (Algorithm 2), which is not the target's own distribution unless
    the draft is the target, or K = N = 1; "coupled" draws K beams a level from the target's own, whatever the draft, by
    noise that both share; "sample" draws K distinct sequences from the target by stochastic beam search (Kool et al.
    2019). All but "strict" need a trie and `seeds`, one integer a request.

    logits_processor, stopping_criteria: as in `generate`; called with the very sequences that it would give them, so
    the rows of a batch go in step, and only those of transformers itself work for the draft too.
    raw: give logits, not log-probabilities, to the processors, as greedy search does.
    tree_attention: False is an ablation: every path of drafted tokens is read as a sequence of its own, with copies of
    the keys and values before it, and without a `Program`.
    trace: a `Trace`, to record the target's log-probabilities at every level, where nothing is drafted.
    """

    width: int
    drafter: str = "model"
    draft_width: int | Sequence[int] | None = None
    gamma: int = 0
    nodes: int | None = None
    constrained_softmax: bool = True
    trie: Trie | None = None
    blocked: Tensor | None = None
    max_new_tokens: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    length_penalty: float = 0.0
    early_stopping: bool | str = False
    verification: str = "strict"
    seeds: Sequence[int] | None = None
    logits_processor: LogitsProcessorList | None = None
    stopping_criteria: StoppingCriteriaList | None = None
    raw: bool = False
    tree_attention: bool = True
    trace: Trace | None = None

    def __post_init__(self):
        check_trie(self.trie)

    def plan(
        self, target: PreTrainedModel, draft: PreTrainedModel | None, input_ids: Tensor, attention_mask: Tensor
    ) -> SearchPlan:
        """Resolve the settings for one batch of these models. Raises ValueError for what does not fit together."""
        plan = self.resolve(input_ids, attention_mask)
        models, length = (target, draft) if self.uses_model else (target,), plan.ending.length
        self._check_vocabularies(target, draft, plan)
        _check_devices(target, draft if self.uses_model else None, input_ids)
        for model in models:
            check_model(model, input_ids.shape[1] + length)
        check_rotation(target, plan.longest, length)
        for model in models:
            check_length(model, plan.longest, length, input_ids.shape[1] + plan.most_nodes - self.width)
        return plan

    def resolve(self, input_ids: Tensor, attention_mask: Tensor) -> SearchPlan:
        """Resolve the settings for one batch, whatever models read it. Raises ValueError as `plan` does."""
        self._check_numbers()
        shortest, longest, largest = _read_prompts(input_ids, attention_mask)
        ending, trie = self._ending(input_ids)
        legal = self._legal(trie and trie.to(input_ids.device), input_ids)
        seeds = self._seeds(legal, input_ids)
        verification, draft_scoring = self._verification(legal, ending, seeds)
        return SearchPlan(
            legal, ending, verification, draft_scoring, self.width, self.drafter, self._widths(), self._nodes(),
            constrained_softmax=self.constrained_softmax and self.verification != "relaxed",
            tree_attention=self.tree_attention, in_step=bool(self.logits_processor or self.stopping_criteria),
            seeds=seeds, shortest=shortest, longest=longest, largest=largest,
        )  # fmt: skip

    @property
    def uses_model(self) -> bool:
        """Whether a draft model is needed."""
        return self.drafter == "hybrid" or (self.drafter == "model" and self.gamma > 0)

    @property
    def drafts(self) -> bool:
        """Whether anything is drafted at all."""
        return self.uses_model or self.drafter in TRIE_DRAFTERS

    def _widths(self) -> tuple[int | None, ...]:
        """Draft widths, one for each level that the draft model ranks; None is as many as there are."""
        given = self.draft_width or 2 * self.width
        given = (given,) if isinstance(given, int) else tuple(given)
        if self.drafter == "hybrid":
            return (None, *given) if len(given) == 1 else given[:2]
        return (given + given[-1:] * self.gamma)[: self.gamma] if self.uses_model else ()

    def _nodes(self) -> int:
        return self.nodes or max(256, 4 * self.width)

    def _check_numbers(self) -> None:
        if self.width < 1 or self.gamma < 0:
            raise ValueError(f"width must be at least 1 and gamma at least 0, not {self.width} and {self.gamma}")
        if self.drafter not in DRAFTERS:
            raise ValueError(f"drafter must be one of {', '.join(DRAFTERS)}, not {self.drafter!r}")
        on_trie = self.trie is not None and not self.logits_processor and self.verification != "relaxed"
        if self.drafter in TRIE_DRAFTERS and not on_trie:
            raise ValueError(
                f"drafter={self.drafter!r} takes a trie, no logits processors, and another verification than 'relaxed'"
            )
        if self.uses_model and min(width or self.width for width in self._widths()) < self.width:
            raise ValueError(
                f"draft_width={self.draft_width} is below width={self.width}: no level could ever be accepted; "
                f"pass draft_width >= {self.width}"
            )
        if self.nodes is not None and self.nodes < self.width:
            raise ValueError(f"nodes={self.nodes} is below width={self.width}: pass nodes >= {self.width}")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping must be True, False or 'never', not {self.early_stopping!r}")
        if self.trace is not None and (not on_trie or self.verification != "strict" or self.drafts):
            raise ValueError("trace takes a trie, no logits processors, verification='strict', and drafter='none'")
        if self.verification not in VERIFICATIONS:
            raise ValueError(f"verification must be one of {', '.join(VERIFICATIONS)}, not {self.verification!r}")

    def _ending(self, input_ids: Tensor) -> tuple[Ending, Trie | None]:
        """When sequences end, and the trie with EOS where one of its sequences may end before the last token."""
        trie, length = self.trie, self.max_new_tokens
        eos = () if self.eos_token_id is None else tuple(torch.as_tensor(self.eos_token_id).view(-1).tolist())
        if trie is None and length is None:
            raise ValueError("without a trie, max_new_tokens must say how much to generate")
        if trie is not None:
            if not eos and trie.shortest < min(trie.length, length or trie.length):
                raise ValueError(
                    f"the trie holds sequences of {trie.shortest} to {trie.length} tokens, which takes a token that "
                    "ends the shorter ones: set eos_token_id"
                )
            length = length or trie.length + (trie.shortest < trie.length)
            if not eos:
                length = min(length, trie.length)
            elif length > trie.shortest or any(trie.holds(token) for token in eos):
                trie = trie.ended_by(eos[0])
                length = min(length, trie.length + 1)
            else:
                eos = ()  # every sequence is cut at the last token or ends with it
        assert length is not None
        criteria = self.stopping_criteria or None
        return Ending(length, eos, self.length_penalty, self.early_stopping, criteria, input_ids), trie

    def _legal(self, trie: Trie | None, input_ids: Tensor) -> Constraint:
        processors = self.logits_processor
        if self.blocked is not None:
            shape = (len(input_ids), trie.dead + 1 if trie is not None else 0)
            if trie is None or processors or self.blocked.shape != shape or self.blocked.dtype != torch.bool:
                raise ValueError(
                    f"blocked takes a trie, no logits processors, and a bool of shape {shape}, not "
                    f"{self.blocked.dtype} {tuple(self.blocked.shape)}: make it with trie.blocked(…)"
                )
        if trie is not None and not processors:
            blocked = self.blocked if self.blocked is None else self.blocked.to(input_ids.device)
            return TrieConstraint(trie, blocked=blocked)
        if trie is not None:
            processors = constrained(processors, trie, input_ids.shape[1], self.width)
        return VocabularyConstraint(processors, input_ids, group=self.width, raw=self.raw)

    def _check_vocabularies(
        self, target: PreTrainedModel, draft: PreTrainedModel | None, plan: SearchPlan
    ) -> None:  # fmt: skip
        if self.uses_model and draft is None:
            which = f"gamma={self.gamma}" if self.drafter == "model" else f"drafter={self.drafter!r}"
            raise ValueError(f"{which} needs a draft model; pass draft=, or drafter='none' for plain beam search")
        sizes = {"target": target.config.get_text_config().vocab_size}
        if self.uses_model and draft is not None:
            sizes["draft"] = draft.config.get_text_config().vocab_size
        held = {"the prompts hold": plan.largest}
        if self.trie is not None:
            held |= {
                "the trie holds": self.trie.vocabulary_size - 1,
                "eos_token_id is": max(plan.ending.eos, default=0),
            }
        for name, size in sizes.items():
            for what, token in held.items():
                if token >= size:
                    raise ValueError(
                        f"{what} token {token}, the {name}'s vocabulary ends at {size - 1}: another tokenizer, or "
                        "embeddings that were not resized to it (resize_token_embeddings)?"
                    )
        # Under a trie, what lies beyond one of the vocabularies, such as padding, is never asked for.
        if len(set(sizes.values())) > 1 and (self.trie is None or self.logits_processor):
            raise ValueError(
                f"target and draft differ in vocabulary: {sizes['target']} and {sizes['draft']} tokens; with one "
                f"tokenizer, call draft.resize_token_embeddings({sizes['target']}), or pass a trie without processors"
            )
        most = self.width * sizes["target"]
        if self.uses_model and self.trie is None and max(width or 0 for width in self._widths()) > most:
            raise ValueError(f"draft_width={self.draft_width} exceeds the {most} continuations of {self.width} beams")

    def _seeds(self, legal: Constraint, input_ids: Tensor) -> Tensor | None:
        if self.verification == "strict":
            return None
        name, B = f"verification={self.verification!r}", len(input_ids)
        if not isinstance(legal, TrieConstraint):
            raise ValueError(f"{name} takes a trie and no logits processors: its noise belongs to the trie's states")
        if self.stopping_criteria:
            raise ValueError(f"{name} takes no stopping_criteria")
        given = getattr(self.seeds, "tolist", lambda: self.seeds)()  # of tensors and arrays too
        if not isinstance(given, Sequence) or len(given) != B:
            raise ValueError(f"{name} draws at random: pass seeds=, one integer a request, {B} here, not {given}")
        if not all(isinstance(seed, int) and -(2**63) <= seed < 2**63 for seed in given):
            raise ValueError(f"{name}: seeds must be integers of 64 bits, not {list(given)}")
        return torch.tensor(list(given), device=input_ids.device)

    def _verification(self, legal: Constraint, ending: Ending, seeds: Tensor | None) -> tuple[Verification, Scoring]:
        """How the target verifies, and how the draft ranks."""
        if seeds is None:
            return Strict(self.trace or likelihood), likelihood
        assert self.trie is not None
        assert isinstance(legal, TrieConstraint)  # `_seeds` has refused the rest
        name = f"verification={self.verification!r}"
        if self.verification == "sample":
            if self.length_penalty:
                raise ValueError(f"{name} draws from the target's distribution: pass length_penalty=0")
            if self.early_stopping is True:
                raise ValueError(f"{name} must see all draws end: pass early_stopping=False")
            return Strict(scoring := StochasticBeams(seeds)), scoring
        if ending.early:
            raise ValueError(
                f"{name} takes sequences of one length: pass max_new_tokens={self.trie.shortest}, without an end token"
            )
        sampled = Sampled(seeds)
        return Coupled(sampled) if self.verification == "coupled" else Relaxed(seeds, legal), sampled


def _read_prompts(input_ids: Tensor, attention_mask: Tensor) -> tuple[int, int, int]:
    """Tokens of the shortest and the longest prompt, and the largest token: the one host sync before a search."""
    if input_ids.dim() != 2 or input_ids.shape != attention_mask.shape or not input_ids.numel():
        raise ValueError(
            f"input_ids and attention_mask must both be (B, P), B and P at least 1, not {tuple(input_ids.shape)} and "
            f"{tuple(attention_mask.shape)}"
        )
    if input_ids.device != attention_mask.device:
        raise ValueError(
            f"input_ids are on {input_ids.device} and attention_mask on {attention_mask.device}: move one to the other"
        )
    lengths = attention_mask.sum(-1).long()
    ends = attention_mask[:, -1].bool().all()
    shortest, longest, largest, is_left_padded = torch.stack(
        [lengths.min(), lengths.max(), input_ids.max().long(), ends.long()]
    ).tolist()
    if not is_left_padded:
        raise ValueError("prompts must be left-padded: the last column of attention_mask holds a 0")
    return shortest, longest, largest


def _check_devices(target: PreTrainedModel, draft: PreTrainedModel | None, input_ids: Tensor) -> None:
    for name, model in (("target", target), ("draft", draft)):
        if model is None or len(set(getattr(model, "hf_device_map", {}).values())) > 1:
            continue  # spread over devices, it takes its inputs from any
        if model.device != input_ids.device:
            raise ValueError(
                f"the {name} is on {model.device} and the prompts are on {input_ids.device}: put target, draft and "
                f"prompts on one device, as by draft.to(target.device) and input_ids.to(target.device)"
            )
