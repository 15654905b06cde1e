"""One trainer for target and draft: the recommendation loss, and any alignment loss beside it."""

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data import Dataset as TorchDataset
from transformers import EarlyStoppingCallback, EvalPrediction, PreTrainedModel, Trainer, TrainingArguments

from atspeed.forward import TreeLogits, tree_logits
from atspeed.losses import cross_entropy, mask_illegal, masked_mean
from atspeed.objectives import Objective
from atspeed.prompts import left_pad
from atspeed.resume import WholeCheckpoints, epochs_left_open, last_checkpoint
from atspeed.teacher import TeacherData
from beamsd import Trie
from genrec.errors import UserError

REPORTERS = ("none", "tensorboard", "wandb")


class Samples(TorchDataset):
    """Prompts, the true items and, where an objective needs them, what the teacher said."""

    def __init__(
        self, prompts: Sequence[Sequence[int]], items: Tensor, teacher: TeacherData | None = None, fanout: int = 0
    ):
        """items: (n, L + 1) long, the true identifiers and EOS. fanout: of the trie that the teacher used."""
        assert len(prompts) == len(items)
        self.prompts, self.items, self.teacher, self.fanout = prompts, items, teacher, fanout

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict:
        row = {"prompt": self.prompts[index], "item": self.items[index]}
        if self.teacher:
            lesson = self.teacher.lesson(index, self.fanout)
            row |= {name: value for name, value in vars(lesson).items() if value is not None}
        return row


def collate(rows: list[dict]) -> dict[str, Tensor]:
    """A batch: prompts left-padded, the rest stacked."""
    input_ids, attention_mask = left_pad([row["prompt"] for row in rows])
    stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "prompt"}
    return {"input_ids": input_ids, "attention_mask": attention_mask, **stacked}


@dataclass(frozen=True)
class Alignment:
    """How much, and on what, the draft is aligned with the target."""

    objective: Objective
    trie: Trie | None = None
    alpha: float = 0.0
    temperature: float = 1.0  # of both softmaxes
    constrained_softmax: bool = True  # renormalise over the legal tokens; else what is illegal counts as one more token

    def loss(self, tree: TreeLogits, batch: dict[str, Tensor]) -> Tensor:
        """The mean of `losses`."""
        return self.losses(tree, batch).mean()

    def losses(self, tree: TreeLogits, batch: dict[str, Tensor]) -> Tensor:
        """(1 − α) · recommendation loss + α · alignment loss (AtSpeed, Sec. 4) of each sample (B,).

        Each of the two is a mean over the sample's positions, in float32 whatever the model computes in.
        """
        recommend = cross_entropy(tree.for_item().float(), batch["item"]).mean(-1)
        if not (self.objective.align or self.objective.imitates_beams):
            return recommend
        return (1 - self.alpha) * recommend + self.alpha * self._align(tree, batch)

    def _align(self, tree: TreeLogits, batch: dict[str, Tensor]) -> Tensor:
        if self.objective.needs_item_logits:
            teacher = batch["item_logits"]
            student = tree.for_item()[:, : teacher.shape[1]].float()
            return self.objective.align(student / self.temperature, teacher / self.temperature).mean(-1)
        real = batch["real"][..., None].expand_as(batch["beams"])
        if self.objective.imitates_beams:
            return masked_mean(cross_entropy(tree.for_beams().float(), batch["beams"]), real)
        student, teacher = self._compare_legal(tree, batch["beams"], batch["log_probs"])
        return masked_mean(self.objective.align(student / self.temperature, teacher / self.temperature), real)

    def _compare_legal(self, tree: TreeLogits, beams: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Student's and teacher's log-probabilities (B, K, L, C) of the legal children before each token."""
        children = self.trie.children(self.trie.walk(beams)[..., :-1])
        legal = children != self.trie.dead
        log_probs = tree.logits.float().log_softmax(-1)
        cells = tree.beam_rows[..., None] * log_probs.shape[-1] + self.trie.tokens[children]
        student = log_probs.flatten(1).gather(1, cells.flatten(1)).view_as(teacher)
        student, teacher = mask_illegal(student, legal), mask_illegal(teacher, legal)
        if self.constrained_softmax:
            return student, teacher
        return _with_rest(student), _with_rest(teacher)


def _with_rest(log_probs: Tensor) -> Tensor:
    """Log-probabilities (..., C) and, last, that of everything else (..., C + 1)."""
    rest = (1 - log_probs.exp().sum(-1, keepdim=True)).clamp(min=1e-6)
    return torch.cat([log_probs, rest.log()], -1)


class AlignmentTrainer(Trainer):
    """The Trainer of transformers with this project's loss. What a batch holds is the dataset's business.

    Losses do not depend on how many processes and micro-batches share a batch.
    """

    def __init__(self, *args, alignment: Alignment, **kwargs):
        super().__init__(*args, **kwargs)
        self.alignment = alignment
        # The loss below is a mean over the micro-batch, so the Trainer must divide by the accumulation steps.
        self.model_accepts_loss_kwargs = False

    def get_train_dataloader(self) -> DataLoader:
        """An epoch is whole batches: the last is filled up with samples drawn at random."""
        samples, micro = self.train_dataset, self.args.train_batch_size
        batch = micro * self.args.world_size * self.args.gradient_accumulation_steps
        sampler = RandomSampler(samples, num_samples=math.ceil(len(samples) / batch) * batch)
        pin = self.args.dataloader_pin_memory
        return self.accelerator.prepare(
            DataLoader(samples, micro, sampler=sampler, collate_fn=self.data_collator, pin_memory=pin)
        )

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: list | None = None
    ) -> tuple[None, Tensor, Tensor]:
        """The losses (B,) as predictions: samples that only fill up the last batch are left out of their mean."""
        with torch.no_grad():
            losses = self._losses(model, inputs)
        return None, losses, losses

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict]:
        loss = self._losses(model, inputs).mean()
        return (loss, {}) if return_outputs else loss

    def _losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        beams = inputs["beams"] if self.alignment.objective.needs_beams else None
        tree = tree_logits(model, inputs["input_ids"], inputs["attention_mask"], inputs["item"], beams)
        return self.alignment.losses(tree, inputs)


def _mean_loss(evaluated: EvalPrediction) -> dict[str, float]:
    return {"loss": float(evaluated.predictions.mean())}


@dataclass(frozen=True)
class Schedule:
    """How long, how fast, and where it is reported."""

    epochs: int
    batch_size: int  # over all processes and accumulation steps
    micro_batch_size: int  # of one process, one step
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    patience: int  # epochs without a better eval_loss
    seed: int
    report_to: str
    gradient_checkpointing: bool = False
    mixed_precision: str = "no"  # bf16, fp16 or no
    save_steps: int = 0  # steps between checkpoints within an epoch; 0: one an epoch

    def accumulation_steps(self, world: int) -> int:
        """Micro-batches to a step of the optimiser, with `world` processes.

        Raises UserError if batch_size is no multiple of what one micro-batch of all processes holds.
        """
        together = self.micro_batch_size * world
        if self.batch_size % together:
            raise UserError(
                f"--batch_size {self.batch_size} is not a multiple of {together}, which is --micro_batch_size "
                f"{self.micro_batch_size} x {world} processes"
            )
        return self.batch_size // together

    def check(self, world: int) -> None:
        """Raises UserError for what cannot be run here."""
        self.accumulation_steps(world)
        for name, least in (("epochs", 1), ("patience", 1), ("save_steps", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)}: must be at least {least}")
        if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
            raise UserError(
                "zero_stage 3 in ACCELERATE_CONFIG: shards weights; accelerate.fsdp.yaml does that, take it"
            )
        if self.report_to not in REPORTERS:
            raise UserError(f"--report_to {self.report_to}: choose from {', '.join(REPORTERS)}")
        if self.report_to != "none" and importlib.util.find_spec(self.report_to) is None:
            raise UserError(f"--report_to {self.report_to}: not installed; pip install {self.report_to}")


def fit(
    model: PreTrainedModel, alignment: Alignment, train: Samples, valid: Samples, work: Path, schedule: Schedule,
    world: int,
) -> dict[str, float | list]:  # fmt: skip
    """Train until the epochs are over or eval_loss stops falling; the model ends with its best weights.

    Checkpoints go to `work`; the last that is whole is resumed. Returns the best eval_loss, the epochs and steps run,
    and the history of all losses.
    """
    gpu, checkpoint = torch.cuda.is_available(), last_checkpoint(work)
    arguments = TrainingArguments(
        output_dir=str(work), num_train_epochs=epochs_left_open(checkpoint, schedule.epochs),
        per_device_train_batch_size=schedule.micro_batch_size, per_device_eval_batch_size=schedule.micro_batch_size,
        gradient_accumulation_steps=schedule.accumulation_steps(world), learning_rate=schedule.learning_rate,
        weight_decay=schedule.weight_decay, warmup_steps=schedule.warmup_steps, lr_scheduler_type="cosine",
        eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="eval_loss", greater_is_better=False, restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False, logging_steps=10, report_to=schedule.report_to, seed=schedule.seed,
        use_cpu=not gpu, ddp_find_unused_parameters=False, dataloader_pin_memory=gpu,
        bf16=schedule.mixed_precision == "bf16", fp16=schedule.mixed_precision == "fp16",
        **({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
           if schedule.gradient_checkpointing else {}),
    )  # fmt: skip
    trainer = AlignmentTrainer(
        model, arguments, data_collator=collate, train_dataset=train, eval_dataset=valid, alignment=alignment,
        compute_metrics=_mean_loss,
        callbacks=[EarlyStoppingCallback(schedule.patience), WholeCheckpoints(schedule.save_steps)],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    state = trainer.state
    return {
        "eval_loss": state.best_metric, "epochs": state.epoch, "steps": state.global_step, "history": state.log_history,
    }  # fmt: skip
