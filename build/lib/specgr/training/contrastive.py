"""The losses of SpecGR++: contrastive losses of history and next item, and the generation loss."""

import torch
from torch import Tensor, distributed
from torch.nn.functional import cross_entropy


def info_nce(
    histories: Tensor, items: Tensor, numbers: Tensor, all_items: Tensor, all_numbers: Tensor, first: int,
    temperature: float,
) -> Tensor:  # fmt: skip
    """InfoNCE: each history's next item against all items of the batch (SpecGR, stage 1; van den Oord et al., 2018).

    histories, items: (B, p) of norm 1, embeddings. numbers: (B,) long, which items they are. all_items: (N, p),
    all_numbers: (N,), of the whole batch, of which these are from `first` on. Returns (B,).
    An item that stands in the batch twice is no negative to itself: its score there is -inf, not 0.
    """
    own = first + torch.arange(len(histories), device=histories.device)
    scores = histories @ all_items.T / temperature
    same = numbers[:, None] == all_numbers
    same[torch.arange(len(own), device=own.device), own] = False
    return cross_entropy(scores.masked_fill(same, -torch.inf), own, reduction="none")


def item_cross_entropy(histories: Tensor, items: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """The next item against all items (SpecGR, stage 2; UniSRec). histories: (B, p) of norm 1. items: (n, p) of norm 1.
    rows: (B,) long, which of them is next. Returns (B,)."""
    return cross_entropy(histories @ items.T / temperature, rows, reduction="none")


def generation_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """The mean over levels of -log P(token). logits: (B, l, V). tokens: (B, l) long. Returns (B,)."""
    return cross_entropy(logits.transpose(1, 2), tokens, reduction="none").mean(-1)


def gather(values: Tensor) -> Tensor:
    """The values (B, …) of all processes, one after another: (world · B, …). Gradients flow back to where they come
    from, summed over the processes that used them."""
    return _Gather.apply(values.contiguous()) if distributed.is_initialized() else values


class _Gather(torch.autograd.Function):
    """In public names, since those of torch for it differ between its releases 2.11 and 2.13."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        everyones = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
        distributed.all_gather(everyones, values)
        return torch.cat(everyones)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        return gradient.chunk(distributed.get_world_size())[distributed.get_rank()]


def first_row(local: int) -> int:
    """Where in `gather` the `local` rows of this process begin."""
    return local * distributed.get_rank() if distributed.is_initialized() else 0
