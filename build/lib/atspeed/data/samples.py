"""Training samples and their order."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from atspeed.data.teacher_data import TeacherData
from atspeed.prompts import left_pad

SORTED_TOGETHER = 50  # batches: the more, the less padding, and the less random is who meets whom in a batch


@dataclass(frozen=True)
class HistoryLoss:
    """Weights of a loss on the items of the history too, all but the first, in the same forward.

    It is what one sample for every prefix of the history would teach, but for their instructions. Weights are such that
    every token of the data set counts the same, and a sample 1 on average.
    """

    weights: list[Tensor]  # of each prompt's tokens (P,) float32, 0 for those that are not learnt
    response: float  # of the response, beside 1 where no history is learnt

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], item_tokens: Sequence[int], levels: int) -> "HistoryLoss":
        """item_tokens: the ids that identifiers are made of. levels: L."""
        items, learnt = torch.tensor(item_tokens), []
        for prompt in prompts:
            is_item = torch.isin(torch.tensor(prompt), items)
            learnt.append(is_item & (is_item.cumsum(0) > levels))
        response = len(prompts) / (len(prompts) + sum(int(each.sum()) for each in learnt) / levels)
        return cls([each.float() * response / (levels + 1) for each in learnt], response)


class Samples(TorchDataset):
    """Prompts, true items and, where an objective needs them, teacher data."""

    def __init__(
        self, prompts: Sequence[Sequence[int]], items: Tensor, teacher: TeacherData | None = None, width: int = 0,
        history: HistoryLoss | None = None,
    ):  # fmt: skip
        """items: (n, L + 1) long, the true identifiers and EOS. width: C, of the teacher data."""
        assert len(prompts) == len(items)
        self.prompts, self.items, self.teacher, self.width = prompts, items, teacher, width
        self.history = history

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict:
        row = {"prompt": self.prompts[index], "item": self.items[index]}
        if self.history:
            response = torch.tensor(self.history.response)
            row |= {"history_weights": self.history.weights[index], "response_weight": response}
        if self.teacher:
            targets = self.teacher.targets_of(index, self.width)
            row |= {name: value for name, value in vars(targets).items() if value is not None}
        return row

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return [len(prompt) for prompt in self.prompts]


def collate(rows: list[dict]) -> dict[str, Tensor]:
    """A batch: prompts left-padded, the rest stacked."""
    input_ids, attention_mask = left_pad([row["prompt"] for row in rows])
    names = rows[0].keys() - {"prompt", "history_weights"}
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name in names}
    if "history_weights" in rows[0]:
        padding = [input_ids.shape[1] - len(row["history_weights"]) for row in rows]
        batch["history_weights"] = torch.stack(
            [torch.nn.functional.pad(row["history_weights"], (p, 0)) for row, p in zip(rows, padding, strict=True)]
        )
    return {"input_ids": input_ids, "attention_mask": attention_mask, **batch}


class ByLength(Sampler[int]):
    """A random order in which the samples of a batch are of similar length, so that little padding is read.

    An epoch is whole batches, the last filled up with samples drawn at random. The order depends on seed and epoch
    alone: it is the same on every process, and after a restart.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int):
        """batch: samples in a step of the optimiser, over all processes."""
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch) * self.batch

    def __iter__(self) -> Iterator[int]:
        seed = random.Random(f"{self.seed} {self.epoch}").getrandbits(63)
        generator = torch.Generator().manual_seed(seed)
        n = len(self.lengths)
        order = torch.randperm(n, generator=generator).tolist()
        order += torch.randint(n, (len(self) - n,), generator=generator).tolist()
        batches = []
        for start in range(0, len(order), self.batch * SORTED_TOGETHER):
            together = order[start : start + self.batch * SORTED_TOGETHER]
            together.sort(key=self.lengths.__getitem__)
            batches += [together[i : i + self.batch] for i in range(0, len(together), self.batch)]
        for place in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[place]
