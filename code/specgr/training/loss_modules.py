"""Loss modules: their forward takes rows of the training samples and returns the parts of the loss."""

import torch
from torch import Tensor, nn

from specgr.configuration.config import ContrastivePlan
from specgr.data.codes import Codes
from specgr.data.examples import Examples
from specgr.networks.tiger import Tiger
from specgr.networks.unisrec import UniSRec
from specgr.training.contrastive import first_row, gather, generation_loss, info_nce, item_cross_entropy


class LossModule(nn.Module):
    """`model` is what is trained. `parts` names what forward returns: means over rows (b,) long, weighted, whose sum is
    the loss. A mean over processes with as many rows each is that of all rows."""

    parts: tuple[str, ...]

    def __init__(self, model: nn.Module, examples: Examples):
        super().__init__()
        self.model, self.examples = model, examples

    def batch(self, rows: Tensor) -> Examples:
        """rows: on the CPU, or where DistributedDataParallel moves them, on the model's device."""
        device = next(self.model.parameters()).device
        if self.examples.targets.device != device:
            self.examples = self.examples.to(device)  # small, so they stay there
        return self.examples[rows.to(device)]


class TigerLoss(LossModule):
    """The identifier of the next item (TIGER). The projection is not used, so not trained."""

    parts = ("generation",)

    def __init__(self, model: Tiger, codes: Codes, examples: Examples):
        super().__init__(model, examples)
        self.codes = codes
        model.projection.requires_grad_(False)

    def forward(self, rows: Tensor) -> Tensor:
        batch = self.batch(rows)
        ids, mask = self.codes.history(batch.histories)
        hidden = self.model.encode_by_length(ids, mask)
        return _generation(self.model, hidden, mask, self.codes.tokens[batch.targets])[None]


class UniSRecLoss(LossModule):
    """The next item against all training items."""

    parts = ("items",)

    def __init__(self, model: UniSRec, texts: Tensor, seen: Tensor, examples: Examples):
        super().__init__(model, examples)
        self.texts, self.known, self.row = texts, texts[seen], seen.cumsum(0) - 1

    def forward(self, rows: Tensor) -> Tensor:
        batch = self.batch(rows)
        histories = self.model.histories(batch.histories, self.texts)
        items, temperature = self.model.items(self.known), self.model.settings.temperature
        return item_cross_entropy(histories, items, self.row[batch.targets], temperature).mean()[None]


class Stage1Loss(LossModule):
    """SpecGR++, stage 1: InfoNCE between a history and its next item, both made by the encoder, and the generation loss
    of other rows."""

    parts = ("embedding", "generation")

    def __init__(self, model: Tiger, codes: Codes, examples: Examples, plan: ContrastivePlan):
        super().__init__(model, examples)
        self.codes, self.plan = codes, plan
        model.projection.requires_grad_(True)

    def forward(self, rows: Tensor, generated: Tensor | None = None) -> Tensor:
        """generated: (g,) long, the rows of the generation loss; None: `rows`."""
        n = len(rows)
        batch = self.batch(rows if generated is None else torch.cat([rows, generated]))
        ids, mask = self.codes.history(batch.histories)
        hidden = self.model.encode_by_length(ids, mask)  # of both at once
        embedding = self.embedding_loss(self.model.embed(hidden[:n], mask[:n]), batch.targets[:n])
        if generated is not None:
            hidden, mask, batch = hidden[n:], mask[n:], batch[slice(n, None)]
        generation = _generation(self.model, hidden, mask, self.codes.tokens[batch.targets])
        return torch.stack([self.plan.lambda_emb * embedding, self.plan.lambda_gen * generation])

    def embedding_loss(self, histories: Tensor, targets: Tensor) -> Tensor:
        """histories (b, p), targets (b,) -> ()."""
        tokens, mask = self.codes.history(targets[:, None])
        items = self.model.embed(self.model.encode(tokens, mask), mask)
        first, everyone = first_row(len(targets)), gather(targets)
        return info_nce(histories, items, targets, gather(items), everyone, first, self.plan.temperature).mean()


class Stage2Loss(Stage1Loss):
    """SpecGR++, stage 2: the item embeddings of stage 1 stay as they are, and all training items compete."""

    def __init__(
        self, model: Tiger, codes: Codes, examples: Examples, plan: ContrastivePlan, items: Tensor, seen: Tensor
    ):
        """items: (n_items, p), see `item_embeddings`. seen: (n_items,) bool."""
        super().__init__(model, codes, examples, plan)
        self.items, self.row = items[seen], seen.cumsum(0) - 1

    def embedding_loss(self, histories: Tensor, targets: Tensor) -> Tensor:
        """See `Stage1Loss`."""
        return item_cross_entropy(histories, self.items, self.row[targets], self.plan.temperature).mean()


def _generation(tiger: Tiger, hidden: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
    return generation_loss(tiger.logits(hidden, mask, tokens[:, None])[:, 0], tokens).mean()
