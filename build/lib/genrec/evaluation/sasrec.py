"""A small SASRec, the sequential recommender to compare with (Kang and McAuley, ICDM 2018).

A causal transformer over item numbers that predicts the next item at every position. It is trained by cross-entropy
over the whole catalogue rather than, as in the paper, against one sampled item, which makes it a stronger baseline
(Klenitskiy and Vasilev, RecSys 2023).
"""

import logging
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from genrec.data.dataset import Sample
from genrec.data.splits import Interactions
from genrec.evaluation.metrics import ndcg

logger = logging.getLogger(__name__)

NOTHING = -1  # padding after the last item of a sequence


@dataclass(frozen=True)
class Recipe:
    """Model size and training settings. The defaults suit 10,000 items and take minutes on one core."""

    hidden_size: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.3
    batch_size: int = 128  # sequences
    learning_rate: float = 5e-3
    epochs: int = 20
    patience: int = 3  # epochs without a better validation NDCG@10, after which training stops


class CausalTransformer(nn.Module):
    """Position embeddings and layers of causal self-attention over a sequence of item vectors."""

    def __init__(self, hidden: int, inner: int, layers: int, heads: int, dropout: float, max_history: int):
        super().__init__()
        self.position = nn.Embedding(max_history, hidden)
        self.dropout = nn.Dropout(dropout)
        block = nn.TransformerEncoderLayer(hidden, heads, inner, dropout, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(hidden), enable_nested_tensor=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """Maps vectors (B, P, H), right-padded with any values, to states (B, P, H) that see no later position."""
        length = vectors.shape[1]
        embedded = self.dropout(vectors + self.position.weight[:length])
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=vectors.device)
        return self.blocks(embedded, mask=mask, is_causal=True)


class SASRec(nn.Module):
    """SASRec with tied input and output embeddings: scores every item after every position of a sequence."""

    def __init__(self, items: Iterable[int], max_history: int, recipe: Recipe):
        """items: the catalogue. max_history: the number of most recent items that are read."""
        super().__init__()
        self.items, self.max_history = sorted(items), max_history
        self.row = {item: row for row, item in enumerate(self.items)}
        self.item = nn.Embedding(len(self.items), recipe.hidden_size)
        self.transformer = CausalTransformer(
            recipe.hidden_size, recipe.hidden_size, recipe.layers, recipe.heads, recipe.dropout, max_history
        )
        for embedding in (self.item, self.transformer.position):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, rows: Tensor) -> Tensor:
        """Maps rows (B, P) long, right-padded with any rows, to states (B, P, H) that see no later position."""
        return self.transformer(self.item(rows))

    @torch.inference_mode()
    def recommend(self, histories: Sequence[Sequence[int]], k: int) -> list[list[int]]:
        """Returns k items for each history, best first."""
        self.eval()
        ranked = []
        for start in range(0, len(histories), 512):
            rows = self.pad([history[-self.max_history :] for history in histories[start : start + 512]])
            last = (rows != NOTHING).sum(-1) - 1
            states = self(rows.clamp(min=0))[torch.arange(len(rows), device=rows.device), last]
            ranked += (states @ self.item.weight.T).topk(min(k, len(self.items))).indices.tolist()
        return [[self.items[row] for row in best] for best in ranked]

    def pad(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Converts items to rows of the embedding (B, P), padded with NOTHING."""
        rows = [torch.tensor([self.row[item] for item in sequence]) for sequence in sequences]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NOTHING)
        return padded.to(self.item.weight.device)


def train_sasrec(
    train: Interactions, valid: Sequence[Sample], items: Iterable[int], *, max_history: int, recipe: Recipe = Recipe(),
    seed: int = 0, device: torch.device | str = "cpu",
) -> SASRec:  # fmt: skip
    """Trains on every transition of `train` and returns the model of the epoch with the best NDCG@10 on `valid`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SASRec(items, max_history, recipe).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
        sequences = windows(train, max_history + 1)
        best, weights, since = -1.0, None, 0
        for epoch in range(recipe.epochs):
            loss = _train_epoch(model, optimizer, sequences, recipe)
            ranked = model.recommend([sample.history for sample in valid], 10)
            score = sum(ndcg(r, s.labels, 10) for r, s in zip(ranked, valid, strict=True)) / len(valid)
            logger.info(f"SASRec, epoch {epoch + 1}: loss {loss:.3f}, validation NDCG@10 {score:.4f}")
            since += 1
            if score > best:
                best, weights, since = score, deepcopy(model.state_dict()), 0
            if since == recipe.patience:
                break
    model.load_state_dict(weights)
    return model.eval()


def windows(train: Interactions, length: int) -> list[list[int]]:
    """Cuts histories into windows of at most `length` items, overlapping by one so that each transition occurs once."""
    step = length - 1
    return [history[start : start + length] for history in train.values() for start in range(0, len(history) - 1, step)]


def _train_epoch(
    model: SASRec, optimizer: torch.optim.Optimizer, sequences: Sequence[list[int]], recipe: Recipe
) -> float:
    """Trains on the sequences once, in random order, and returns the mean loss."""
    model.train()
    losses = []
    for batch in torch.randperm(len(sequences)).split(recipe.batch_size):
        rows = model.pad([sequences[i] for i in batch])
        following = rows[:, 1:]
        real = following != NOTHING
        states = model(rows[:, :-1].clamp(min=0))[real]
        loss = cross_entropy(states @ model.item.weight.T, following[real])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)
