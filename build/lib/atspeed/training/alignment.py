"""Alignment loss of a batch, and the data policy that chooses the prefixes that it is computed on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from atspeed.data.compared import ComparedTokens
from atspeed.data.teacher_data import TRIE, VOCABULARY, holds
from atspeed.training.losses import cross_entropy, mask_illegal, masked_mean
from atspeed.training.objectives import ITEM, STUDENT, Objective
from atspeed.training.policy import Shares
from atspeed.tree_logits import TreeLogits, tree_logits
from beamsd import Trie, beam_search


@dataclass(frozen=True)
class AlignmentTargets:
    """Alignment targets of a batch: sequences, and the target's log-probabilities along them."""

    beams: Tensor  # (B, K, L) long
    real: Tensor  # (B, K) bool, False where the trie holds fewer than K
    log_probs: Tensor  # (B, K, L, C) float32, the target's, of what is compared before each token; see `Alignment`


@dataclass(frozen=True)
class Losses:
    """Of each sample, in float32, means over its positions."""

    recommend: Tensor  # (B,)
    levels: Tensor  # (B, L) alignment, by level; (B, 0) without
    total: Tensor  # (B,) (1 − α) · recommend + α · mean of levels

    @property
    def each(self) -> Tensor:
        """(B, 2 + L): total, recommend and the levels."""
        return torch.cat([self.total[:, None], self.recommend[:, None], self.levels], 1)


@dataclass(frozen=True)
class Alignment:
    """The objective of a draft, and the weight and temperature of its alignment loss.

    Compared are, before each token of a beam, C tokens: see `ComparedTokens`. Identifiers end there: EOS is learnt by
    the recommendation loss alone.
    """

    objective: Objective
    trie: Trie | None = None
    alpha: float = 0.0
    temperature: float = 1.0  # of both softmaxes
    held_over: str = TRIE  # what the teacher data hold, of `ALIGNMENT_OVER`

    def losses(self, tree: TreeLogits, item: Tensor, targets: AlignmentTargets | None) -> Losses:
        """tree: the student's, along `item` (B, L') and the beams of `targets`. Source: AtSpeed, Sec. 4."""
        recommend = cross_entropy(tree.for_item().float(), item).mean(-1)
        if targets is None:
            return Losses(recommend, recommend.new_zeros(len(recommend), 0), recommend)
        if self.objective.imitates_beams:
            losses = cross_entropy(tree.for_beams().float(), targets.beams)
        else:
            assert self.objective.align is not None
            losses = self.objective.align(*self._compared(tree, targets))
        levels = masked_mean(losses, targets.real[..., None].expand_as(losses), dim=1)
        return Losses(recommend, levels, (1 - self.alpha) * recommend + self.alpha * levels.mean(-1))

    def _compared(self, tree: TreeLogits, targets: AlignmentTargets) -> tuple[Tensor, Tensor]:
        """Student's and teacher's logits (B, K, L, C) at the temperature, at the dtype's floor where illegal."""
        student, teacher = self.compared.log_probs(tree, targets.beams), targets.log_probs
        if self.compared.over == VOCABULARY:
            return student / self.temperature, teacher / self.temperature
        real = self.compared.real(targets.beams)
        if not self.objective.constrained_softmax:
            student, teacher = _with_rest(student, real), _with_rest(teacher, real)
            real = torch.cat([real, torch.ones_like(real[..., :1])], -1)
        # The floor comes last: divided by a temperature below 1 it would be -inf.
        return mask_illegal(student / self.temperature, real), mask_illegal(teacher / self.temperature, real)

    @property
    def legal(self) -> Trie:
        """The trie; only the recommendation loss does without."""
        assert self.trie is not None
        return self.trie

    @cached_property
    def compared(self) -> ComparedTokens:
        return ComparedTokens(self.objective.alignment_over, self.legal)

    @cached_property
    def held(self) -> ComparedTokens:
        """Of which tokens the teacher data hold log-probabilities along the beams."""
        return ComparedTokens(self.held_over, self.legal)


def with_history(losses: Losses, tree: TreeLogits, batch: dict[str, Tensor]) -> Losses:
    """The recommendation loss over the items of the history too; see `HistoryLoss`. tree: with `prompt`."""
    within = cross_entropy(tree.for_prompt().float(), batch["input_ids"][:, 1:])
    history = (within * batch["history_weights"][:, 1:]).sum(-1)
    return replace(losses, total=losses.total * batch["response_weight"] + history)


def _with_rest(log_probs: Tensor, real: Tensor) -> Tensor:
    """Log-probabilities (..., C) and, last, that of all other tokens (..., C + 1)."""
    rest = (1 - log_probs.exp().where(real, 0).sum(-1, keepdim=True)).clamp(min=1e-6)
    return torch.cat([log_probs, rest.log()], -1)


@dataclass(frozen=True)
class DataPolicy(Shares):
    """Chooses the alignment targets of every batch."""

    width: int = 20  # K, of the draft's own beams
    target: PreTrainedModel | None = None  # scores what the teacher data do not hold; None where they hold all

    def targets(
        self, source: str, alignment: Alignment, draft: PreTrainedModel, batch: dict[str, Tensor]
    ) -> AlignmentTargets:
        """draft: not wrapped by whatever runs it on several processes."""
        prompt, item = (batch["input_ids"], batch["attention_mask"]), batch["item"]
        if source == STUDENT:
            beams, real = _own_beams(draft, *prompt, alignment.legal, self.width)
        elif source == ITEM:
            beams = item[:, None, : alignment.legal.length]
            real = torch.ones_like(beams[..., 0], dtype=torch.bool)
        else:
            beams, real = batch["beams"], batch["real"]
            if holds(alignment.held_over, alignment.objective.alignment_over):
                said = alignment.compared.among(alignment.held, batch["log_probs"], beams)
                return AlignmentTargets(beams, real, said)
        with torch.no_grad():
            if source == ITEM and "item_logits" in batch:
                rows = torch.arange(beams.shape[-1], device=beams.device).expand_as(beams)
                tree = TreeLogits(batch["item_logits"], rows[:, 0], rows)
            else:
                assert self.target is not None
                tree = tree_logits(self.target, *prompt, item, beams)
            return AlignmentTargets(beams, real, alignment.compared.log_probs(tree, beams))


def _own_beams(
    draft: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, trie: Trie, width: int
) -> tuple[Tensor, Tensor]:
    """The draft's K best items (B, K, L) as it now is, and which are real (B, K)."""
    with evaluating(draft):
        found = beam_search(draft, input_ids, attention_mask, trie=trie, width=width)
    return found.sequences.clone(), found.scores.isfinite().clone()  # clones may take part in training


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """The model as inference runs it, and then as it was: in eval mode, computing in the dtype of its weights.

    For mixed precision accelerate wraps the model's `forward` in autocast, and `unwrap_model` leaves that on.
    """
    training, own = model.training, vars(model)
    wrapped = own.get("forward")
    if "_original_forward" in own:
        own["forward"] = own["_original_forward"]
    model.eval()
    try:
        with torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        model.train(training)
        if wrapped is not None:
            own["forward"] = wrapped
