"""One forward over prompt, true item and all teacher beams: the decoder's tree, used for training."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from beamsd import Tree


@dataclass(frozen=True)
class TreeLogits:
    """A model's logits after the prompt and after every token of the sequences hung under it."""

    logits: Tensor  # (B, n, V), after the prompt's last token, or all of them, and all grown nodes
    item_rows: Tensor  # (B, L') long: row of `logits` that predicts item[:, t]
    beam_rows: Tensor  # (B, K, L) long: row of `logits` that predicts beams[:, k, t]; K = 0 without beams
    prompt: int = 0  # rows of `logits` before the prompt's last token

    def for_prompt(self) -> Tensor:
        """(B, P - 1, V): [:, t] predicts token t + 1 of the prompt; only if all of it was kept."""
        return self.logits[:, : self.prompt]

    def for_item(self) -> Tensor:
        """(B, L', V): [:, t] predicts the item's token t."""
        return self.logits.gather(1, self.item_rows[..., None].expand(-1, -1, self.logits.shape[-1]))

    def for_beams(self) -> Tensor:
        """(B, K, L, V): [:, k, t] predicts token t of beam k."""
        rows = self.beam_rows.flatten(1)[..., None].expand(-1, -1, self.logits.shape[-1])
        return self.logits.gather(1, rows).unflatten(1, self.beam_rows.shape[1:])

    def log_probs(self, tokens: Tensor) -> Tensor:
        """(B, K, L, C) float32, normalised over the whole vocabulary: [:, k, t] of `tokens` (B, K, L, C) long in the
        place of token t of beam k."""
        logits, rows = self.logits.float(), self.beam_rows
        cells = rows[..., None] * logits.shape[-1] + tokens
        normaliser = logits.logsumexp(-1).gather(1, rows.flatten(1)).view_as(rows)
        return logits.flatten(1).gather(1, cells.flatten(1)).view_as(tokens) - normaliser[..., None]


def tree_logits(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, item: Tensor, beams: Tensor | None = None,
    prompt: bool = False,
) -> TreeLogits:  # fmt: skip
    """Logits along the true item and along every beam, equal to one forward each.

    model: a decoder-only model, possibly wrapped (LoRA, DDP). input_ids, attention_mask: (B, P), left-padded.
    item: (B, L') long, the true continuation. beams: (B, K, L) long, the teacher's. prompt: keep all of its logits too.
    """
    B, P = input_ids.shape
    if beams is None:
        beams = item.new_zeros(B, 0, 1)
    K, L = beams.shape[1:]
    tree = Tree.trunk(input_ids, attention_mask, capacity=P + item.shape[1] - 1 + K * (L - 1))
    root = torch.full((B, 1), P - 1, device=input_ids.device)
    item_path = _hang(tree, root, item[:, None])[:, 0]
    beam_path = _hang(tree, root.expand(B, K), beams)
    first = 0 if prompt else P - 1
    logits = model(
        input_ids=tree.tokens,
        attention_mask=tree.additive_mask(0, tree.size, next(model.parameters()).dtype),
        position_ids=tree.positions(),
        use_cache=False,
        logits_to_keep=tree.size - first,
    ).logits
    return TreeLogits(logits, item_path - first, beam_path - first, P - 1 - first)


def _hang(tree: Tree, roots: Tensor, sequences: Tensor) -> Tensor:
    """Hang sequences (B, m, l), all but their last tokens, under `roots` (B, m).

    Returns for every token the node (B, m, l) that predicts it.
    """
    path = [roots]
    for column in sequences[..., :-1].unbind(-1):
        path.append(tree.append(path[-1], column))
    return torch.stack(path, -1)
