"""One trainer for target and draft: the recommendation loss, and any alignment loss beside it."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from atspeed.alignment import Alignment, DataPolicy
from atspeed.forward import tree_logits
from atspeed.prompts import left_pad
from atspeed.selection import Selection
from atspeed.teacher import TeacherData
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


class AlignmentTrainer(Trainer):
    """The Trainer of transformers with this project's loss, data policy and selection."""

    def __init__(
        self, *args: object, alignment: Alignment, policy: DataPolicy, selection: Selection | None, **kwargs: object
    ):
        super().__init__(*args, **kwargs)
        self.alignment, self.policy, self.selection = alignment, policy, selection
        # The loss below is a mean over the micro-batch, so the Trainer must divide by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.evaluated: list[Tensor] = []  # of each batch: requests, and the sums of their losses by kind and level
        if self.is_fsdp_enabled and (policy.r_student or selection):
            raise UserError(
                "--r_student and --select_users decode with the draft, of which FSDP leaves no process a whole; choose "
                "an ACCELERATE_CONFIG without FSDP, or pass --r_student 0 --select_users 0 --select_by eval_loss"
            )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict]:
        source = home = self.alignment.objective.home
        if model.training and home:
            source = self.policy.source(home, self.state.global_step)
        lessons = None
        if home:
            lessons = self.policy.lessons(source, self.alignment, self.accelerator.unwrap_model(model), inputs)
        beams = lessons.beams if lessons else None
        tree = tree_logits(model, inputs["input_ids"], inputs["attention_mask"], inputs["item"], beams)
        losses = self.alignment.loss(tree, inputs["item"], lessons)
        if not model.training:
            n = len(inputs["item"])
            each = torch.cat([losses.recommend[None], losses.levels]).detach()
            self.evaluated.append(torch.cat([torch.full_like(each[:1], n), n * each]))
        return (losses.total, {}) if return_outputs else losses.total

    def evaluation_loop(self, *args: object, **kwargs: object) -> EvalLoopOutput:
        """Also: the losses one by one, and what the target accepts of this draft."""
        self.evaluated = []
        output = super().evaluation_loop(*args, **kwargs)
        n, recommend, *levels = self._summed(torch.stack(self.evaluated).sum(0))
        more = {"eval_recommendation_loss": recommend / n}
        more |= {f"eval_alignment_loss_level_{level}": loss / n for level, loss in enumerate(levels)}
        if self.selection:
            draft, state = self.accelerator.unwrap_model(self.model), self.accelerator
            share = (self.args.eval_batch_size, state.process_index, state.num_processes)
            accepted, calls, requests = self._summed(self.selection.measure(draft, *share))
            more |= {"eval_accepted": accepted / requests, "eval_target_calls": calls / requests}
        output.metrics.update(more)
        return output

    def _summed(self, values: Tensor) -> list[float]:
        """Over all processes."""
        return self.accelerator.reduce(values, "sum").tolist()


@dataclass(frozen=True)
class Schedule:
    """How long, how fast, and where it is reported."""

    epochs: int
    batch_size: int  # over all processes and accumulation steps
    micro_batch_size: int  # of one process, one step
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    patience: int  # epochs without a better one, by `select_by`
    seed: int
    report_to: str
    gradient_checkpointing: bool = False
    select_by: str = "eval_loss"  # what tells the best weights, and when to stop: one of SELECT_BY

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
        for name in ("epochs", "patience"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be at least 1")
        if self.report_to not in REPORTERS:
            raise UserError(f"--report_to {self.report_to}: choose from {', '.join(REPORTERS)}")
        if self.report_to != "none" and importlib.util.find_spec(self.report_to) is None:
            raise UserError(f"--report_to {self.report_to}: not installed; pip install {self.report_to}")


def fit(
    model: PreTrainedModel, alignment: Alignment, train: Samples, valid: Samples, work: Path, schedule: Schedule,
    world: int, policy: DataPolicy | None = None, selection: Selection | None = None,
) -> dict[str, float | list]:  # fmt: skip
    """Train until the epochs are over or what `schedule.select_by` names gets no better; the model ends with its best
    weights.

    Checkpoints go to `work`; what is found there is resumed. policy: None takes the objective's home. selection: is
    needed to select by "accepted".
    Returns what the evaluation of the best weights said, the epochs and steps run, and the history of all losses.
    """
    gpu = torch.cuda.is_available()
    by_loss = schedule.select_by == "eval_loss"
    arguments = TrainingArguments(
        output_dir=str(work), num_train_epochs=schedule.epochs,
        per_device_train_batch_size=schedule.micro_batch_size, per_device_eval_batch_size=schedule.micro_batch_size,
        gradient_accumulation_steps=schedule.accumulation_steps(world), learning_rate=schedule.learning_rate,
        weight_decay=schedule.weight_decay, warmup_steps=schedule.warmup_steps, lr_scheduler_type="cosine",
        eval_strategy="epoch", save_strategy="epoch", save_total_limit=1, load_best_model_at_end=True,
        metric_for_best_model="eval_loss" if by_loss else "eval_accepted", greater_is_better=not by_loss,
        prediction_loss_only=True, label_names=["item"], restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False, logging_steps=10, report_to=schedule.report_to, seed=schedule.seed,
        use_cpu=not gpu, bf16=gpu, ddp_find_unused_parameters=False, dataloader_pin_memory=gpu,
        **({"gradient_checkpointing": True} if schedule.gradient_checkpointing else {}),
    )  # fmt: skip
    trainer = AlignmentTrainer(
        model, arguments, data_collator=collate, train_dataset=train, eval_dataset=valid, alignment=alignment,
        policy=policy or DataPolicy(), selection=selection, callbacks=[EarlyStoppingCallback(schedule.patience)],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=any(work.glob("checkpoint-*")))
    state = trainer.state
    best = next(log for log in state.log_history if log["step"] == state.best_global_step and "eval_loss" in log)
    said = ("eval_loss", "eval_accepted", "eval_target_calls")
    return {
        **{name: best[name] for name in said if name in best}, "best_epoch": best["epoch"], "epochs": state.epoch,
        "steps": state.global_step, "history": state.log_history,
    }  # fmt: skip
