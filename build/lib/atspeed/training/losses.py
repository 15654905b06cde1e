"""Alignment losses. Each maps (student, teacher) logits (..., C) to a loss per position (...).

C runs over the tokens that are compared: the whole vocabulary, or some of it padded with the dtype's floor (see
`mask_illegal`), which get probability 0 and no gradient. Logits may be log-probabilities. p: teacher (target),
q: student (draft). Masking and averaging over positions happen in one place, `masked_mean`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Forward KL, Σ p (log p − log q): cover everything that the target likes. WordKD.

    >>> import torch
    >>> student, teacher = torch.tensor([0.6, 0.4]).log(), torch.tensor([0.75, 0.25]).log()
    >>> kl(student, teacher)   # 0.75 log(0.75 / 0.6) + 0.25 log(0.25 / 0.4)
    tensor(0.0499)
    """
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def tvd(student: Tensor, teacher: Tensor) -> Tensor:
    """Total variation distance, ½ Σ |q − p|: 1 − the chance that sampling accepts. TVDKD, AtSpeed-R (Sec. 4).

    >>> import torch
    >>> tvd(torch.tensor([0.6, 0.4]).log(), torch.tensor([0.75, 0.25]).log())
    tensor(0.1500)
    """
    return 0.5 * (student.softmax(-1) - teacher.softmax(-1)).abs().sum(-1)


def topk_alignment(student: Tensor, teacher: Tensor, k: int, density: bool = True) -> Tensor:
    """AtSpeed-S (Sec. 4): Σ_T q̃ (log q̃ − log p̃) + p_K · H(q̃), over the student's own top k tokens T.

    p̃, q̃ are p, q renormalised on T; p_K is p̃ of the student's k-th token. The first term, a reverse KL, has the
    student be right where it will bet; the second asks it to concentrate as long as the target likes its last bet.
    Where fewer than k tokens are compared there is no k-th, and the second term vanishes; so it does without `density`.

    >>> import torch
    >>> student, teacher = torch.tensor([0.3, 0.5, 0.2]).log(), torch.tensor([0.2, 0.6, 0.2]).log()
    >>> topk_alignment(student, teacher, k=2)   # q̃ = (5/8, 3/8), p̃ = (3/4, 1/4): 0.0381 + 1/4 · 0.6616
    tensor(0.2035)
    """
    bets, tokens = student.topk(min(k, student.shape[-1]))
    q, p = bets.log_softmax(-1), teacher.gather(-1, tokens).log_softmax(-1)
    reverse_kl = (q.exp() * (q - p)).sum(-1)
    if not density or student.shape[-1] < k:
        return reverse_kl
    return reverse_kl - p[..., -1].exp() * (q.exp() * q).sum(-1)


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """−log q of `tokens` (...) under `logits` (..., V). The recommendation loss, and SeqKD on the target's beams."""
    return -logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


def mask_illegal(logits: Tensor, legal: Tensor) -> Tensor:
    """Logits with illegal tokens at the dtype's floor: probability 0, yet finite, so that gradients stay finite."""
    import torch

    return logits.masked_fill(~legal, torch.finfo(logits.dtype).min)


def masked_mean(losses: Tensor, real: Tensor, dim: int) -> Tensor:
    """The mean of `losses` along `dim` over what is `real`; 0 where nothing is.

    Within a sample only, never over the batch: how a batch is divided into micro-batches then changes nothing.
    """
    return losses.where(real, 0).sum(dim) / real.sum(dim).clamp(min=1)
