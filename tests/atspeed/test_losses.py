"""Losses: hand-worked numbers, naive loops, zero where student and teacher agree, finite gradients under masks."""

import inspect
import math

import pytest
import torch

from atspeed.commands import train
from atspeed.training.losses import cross_entropy, kl, mask_illegal, masked_mean, topk_alignment, tvd


def naive_kl(q, p):
    return sum(b * math.log(b / a) for a, b in zip(q, p, strict=True) if b > 0)


def naive_tvd(q, p):
    return 0.5 * sum(abs(a - b) for a, b in zip(q, p, strict=True))


def naive_topk(q, p, k):
    top = sorted(range(len(q)), key=lambda i: -q[i])[:k]
    q_sum, p_sum = sum(q[i] for i in top), sum(p[i] for i in top)
    q_hat, p_hat = [q[i] / q_sum for i in top], [p[i] / p_sum for i in top]
    reverse_kl = sum(a * math.log(a / b) for a, b in zip(q_hat, p_hat, strict=True) if a > 0)
    entropy = -sum(a * math.log(a) for a in q_hat if a > 0)
    return reverse_kl + (p_hat[-1] if len(top) == k else 0) * entropy


def topk_3(student, teacher):
    return topk_alignment(student, teacher, 3)


LOSSES = [(kl, naive_kl), (tvd, naive_tvd), (topk_3, lambda q, p: naive_topk(q, p, 3))]


def logits(*shape, seed):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("loss", "naive"), LOSSES, ids=["kl", "tvd", "topk"])
@pytest.mark.parametrize("n_legal", [2, 3, 6, 7])
def test_equals_a_naive_loop_over_the_legal_tokens(loss, naive, n_legal):
    student, teacher = logits(4, 5, 7, seed=0), logits(4, 5, 7, seed=1)
    legal = torch.arange(7).expand_as(student) < n_legal
    got = loss(mask_illegal(student, legal), mask_illegal(teacher, legal))
    assert got.shape == (4, 5)
    q, p = (t[..., :n_legal].softmax(-1).double() for t in (student, teacher))
    expected = [[naive(q[i, j].tolist(), p[i, j].tolist()) for j in range(5)] for i in range(4)]
    torch.testing.assert_close(got.double(), torch.tensor(expected, dtype=torch.double), atol=1e-5, rtol=1e-5)


def test_hand_worked():
    q, p = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.25, 0.25, 0.5]).log()
    assert tvd(q, p).item() == pytest.approx(0.25)
    assert kl(q, p).item() == pytest.approx(0.25 * math.log(0.5) + 0.5 * math.log(2))
    # T is the first two: q̃ = (2/3, 1/3), p̃ = (1/2, 1/2), p_K = 1/2
    reverse_kl = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    entropy = -2 / 3 * math.log(2 / 3) - 1 / 3 * math.log(1 / 3)
    assert topk_alignment(q + 1e-6 * torch.tensor([0, 1, 0]), p, 2).item() == pytest.approx(
        reverse_kl + 0.5 * entropy, abs=1e-4
    )
    assert cross_entropy(q, torch.tensor(2)).item() == pytest.approx(math.log(4))


def test_what_is_zero_where_student_and_teacher_agree():
    same = logits(3, 9, seed=2)
    for loss in (kl, tvd):
        torch.testing.assert_close(loss(same, same), torch.zeros(3), atol=1e-6, rtol=0)
    # Of AtSpeed-S the reverse KL is zero, and the density term p_K · H stays: only a student that puts all on one bet
    # has nothing left to lose.
    q = same.topk(3).values.softmax(-1)
    density = q[..., -1] * -(q * q.log()).sum(-1)
    torch.testing.assert_close(topk_3(same, same), density, atol=1e-6, rtol=1e-5)
    sure = torch.tensor([[50.0, 0, 0, 0]])
    assert topk_3(sure, sure).item() == pytest.approx(0, abs=1e-6)
    assert density.min() > 0


@pytest.mark.parametrize("loss", [kl, tvd, topk_3])
@pytest.mark.parametrize("n_legal", [1, 2, 5])
def test_gradients_are_finite_and_only_at_legal_tokens(loss, n_legal):
    student = logits(6, 8, seed=3).requires_grad_()
    legal = torch.arange(8).expand_as(student) < n_legal
    loss(mask_illegal(student, legal), mask_illegal(logits(6, 8, seed=4), legal)).sum().backward()
    assert student.grad.isfinite().all()
    assert (student.grad[:, n_legal:] == 0).all()
    if n_legal > 1:
        assert (student.grad[:, :n_legal].abs().sum(-1) > 0).all()


def test_the_default_temperature_gives_nearly_every_row_a_gradient_and_a_thousandth_does_not():
    """The release divides logits by 0.001 for AtSpeed-R: a one-hot softmax has no gradient."""
    shares, default = [], inspect.signature(train.main).parameters["temperature"].default
    for temperature in (default, 0.001):
        student = logits(1000, 64, seed=5).requires_grad_()
        tvd(student / temperature, logits(1000, 64, seed=6) / temperature).sum().backward()
        shares.append((student.grad.abs().sum(-1) > 1e-6).float().mean().item())
    assert shares[0] > 0.99
    assert shares[1] < 0.2


def test_masked_mean_counts_real_positions_only():
    losses = torch.tensor([[[1.0, 2.0], [3.0, torch.nan]], [[torch.inf, 5.0], [torch.nan, torch.nan]]])
    real = torch.tensor([[[True, True], [True, False]], [[False, True], [False, False]]])
    assert masked_mean(losses, real, dim=1).tolist() == [[2.0, 2.0], [0.0, 5.0]]
    assert masked_mean(losses, torch.zeros_like(real), dim=1).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_cross_entropy_equals_a_naive_loop_with_finite_gradients():
    student, tokens = logits(3, 4, 9, seed=7).requires_grad_(), torch.arange(12).view(3, 4) % 9
    got = cross_entropy(student, tokens)
    for row, token, loss in zip(student.view(-1, 9).tolist(), tokens.flatten().tolist(), got.flatten(), strict=True):
        assert loss.item() == pytest.approx(math.log(sum(map(math.exp, row))) - row[token], abs=1e-5)
    got.sum().backward()
    assert student.grad.isfinite().all()
