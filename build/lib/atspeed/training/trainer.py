"""The trainer of target and draft: the recommendation loss and any alignment loss."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from transformers import EarlyStoppingCallback, EvalPrediction, PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import EvalLoopOutput

from atspeed.data.samples import ByLength, Samples, collate
from atspeed.training.alignment import Alignment, DataPolicy, Losses, with_history
from atspeed.training.resume import WholeCheckpoints, epochs_left_open, last_checkpoint
from atspeed.training.schedule import Schedule
from atspeed.training.selection import Selection
from atspeed.training.training_progress import TrainingProgress
from atspeed.tree_logits import tree_logits
from beamsd.compat import CHECKPOINTING_NAMES, known_name
from genrec.runtime.cli import GROUP_TIMEOUT
from genrec.runtime.errors import UserError


class AlignmentTrainer(Trainer):
    """The Trainer of transformers with this project's loss, data policy and selection.

    Losses do not depend on how many processes and micro-batches share a batch.
    """

    def __init__(
        self, *args: object, alignment: Alignment, policy: DataPolicy, selection: Selection | None, **kwargs: object
    ):
        super().__init__(*args, **kwargs)
        self.alignment, self.policy, self.selection = alignment, policy, selection
        # The loss below is a mean over the micro-batch, so the Trainer must divide by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        if self.is_fsdp_enabled and (policy.r_student or selection):
            raise UserError(
                "--r_student and --select_users decode with the draft, of which FSDP leaves no process a whole; choose "
                "an ACCELERATE_CONFIG without FSDP, or pass --r_student 0 --select_users 0 --select_by eval_loss"
            )

    def get_train_dataloader(self) -> DataLoader:
        samples, micro = self.train_dataset, self.args.train_batch_size
        batch = micro * self.args.world_size * self.args.gradient_accumulation_steps
        sampler = ByLength(samples.lengths, batch, self.args.seed)
        pin = self.args.dataloader_pin_memory
        return self.accelerator.prepare(
            DataLoader(samples, micro, sampler=sampler, collate_fn=self.data_collator, pin_memory=pin)
        )

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: list | None = None
    ) -> tuple[None, Tensor, Tensor]:
        """The losses as predictions: samples that only fill up the last batch are left out of their means."""
        with torch.no_grad():
            losses = self._losses(model, inputs).each
        return None, losses, losses

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict]:
        loss = self._losses(model, inputs).total.mean()
        return (loss, {}) if return_outputs else loss

    def _losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> Losses:
        default_prefix, targets = self.alignment.objective.default_prefix, None
        if default_prefix:
            source = self.policy.source(default_prefix, self.state.global_step) if model.training else default_prefix
            targets = self.policy.targets(source, self.alignment, self.accelerator.unwrap_model(model), inputs)
        beams, history = targets.beams if targets else None, "history_weights" in inputs
        tree = tree_logits(model, inputs["input_ids"], inputs["attention_mask"], inputs["item"], beams, prompt=history)
        losses = self.alignment.losses(tree, inputs["item"], targets)
        return with_history(losses, tree, inputs) if history else losses

    def evaluation_loop(self, *args: object, **kwargs: object) -> EvalLoopOutput:
        """Also: what the target accepts of this draft."""
        output = super().evaluation_loop(*args, **kwargs)
        if self.selection:
            draft, state = self.accelerator.unwrap_model(self.model), self.accelerator
            share = (self.args.eval_batch_size, state.process_index, state.num_processes)
            sums = state.reduce(self.selection.measure(draft, *share), "sum")
            accepted, calls, requests = sums.tolist()
            output.metrics.update({"eval_accepted": accepted / requests, "eval_target_calls": calls / requests})
        return output


def _means(evaluated: EvalPrediction) -> dict[str, float]:
    """Of the columns of `Losses.each`."""
    loss, recommend, *levels = evaluated.predictions.mean(0).tolist()
    by_level = {f"alignment_loss_level_{level}": mean for level, mean in enumerate(levels)}
    return {"loss": loss, "recommendation_loss": recommend} | by_level


def training_arguments(work: Path, schedule: Schedule, world: int, epochs: int) -> TrainingArguments:
    """What the Trainer is told. A process has one GPU, however many it sees.

    world: processes. epochs: to train in all, see `epochs_left_open`.
    """
    gpu, by_loss = torch.cuda.is_available(), schedule.select_by == "eval_loss"
    again = known_name(CHECKPOINTING_NAMES, vars(TrainingArguments))
    assert again is not None
    recomputing = {again: True, f"{again}_kwargs": {"use_reentrant": False}} if schedule.gradient_checkpointing else {}
    arguments = TrainingArguments(
        output_dir=str(work), num_train_epochs=epochs,
        per_device_train_batch_size=schedule.micro_batch_size, per_device_eval_batch_size=schedule.micro_batch_size,
        gradient_accumulation_steps=schedule.accumulation_steps(world), learning_rate=schedule.learning_rate,
        weight_decay=schedule.weight_decay, warmup_steps=schedule.warmup_steps, lr_scheduler_type="cosine",
        eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="eval_loss" if by_loss else "eval_accepted", greater_is_better=not by_loss,
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False, logging_steps=10, report_to=schedule.report_to, seed=schedule.seed,
        use_cpu=not gpu, disable_tqdm=True, ddp_find_unused_parameters=False, dataloader_pin_memory=gpu,
        ddp_timeout=int(GROUP_TIMEOUT.total_seconds()),
        bf16=schedule.mixed_precision == "bf16", fp16=schedule.mixed_precision == "fp16",
        **recomputing,
    )  # fmt: skip
    # Or a single process that sees several would share the model among them (nn.DataParallel), which multiplies the
    # batch. There is no argument for it; the Trainer itself sets this attribute where the model is on several GPUs.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def fit(
    model: PreTrainedModel, alignment: Alignment, train: Samples, valid: Samples, work: Path, schedule: Schedule,
    world: int, policy: DataPolicy | None = None, selection: Selection | None = None,
) -> dict[str, float | list]:  # fmt: skip
    """Train until the epochs are over or what `schedule.select_by` names gets no better; the model ends with its best
    weights.

    Checkpoints go to `work`; the last that is whole is resumed. policy: None takes the objective's default prefix.
    selection: is needed to select by "accepted".
    Returns what the evaluation of the best weights said, the epochs and steps run, and the history of all losses.
    """
    checkpoint = last_checkpoint(work)
    arguments = training_arguments(work, schedule, world, epochs_left_open(checkpoint, schedule.epochs))
    trainer = AlignmentTrainer(
        model, arguments, data_collator=collate, train_dataset=train,
        eval_dataset=Subset(valid, sorted(range(len(valid)), key=valid.lengths.__getitem__)), alignment=alignment,
        policy=policy or DataPolicy(), selection=selection, compute_metrics=_means,
        callbacks=[
            EarlyStoppingCallback(schedule.patience), WholeCheckpoints(schedule.save_steps), TrainingProgress(),
        ],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # what the Trainer takes if it is to show no bars of its own
    with warnings.catch_warnings():  # at every checkpoint, of what is meant: item tokens are new rows
        warnings.filterwarnings("ignore", "Setting `save_embedding_layers` to `True`")
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    state = trainer.state
    best = next(log for log in state.log_history if log["step"] == state.best_global_step and "eval_loss" in log)
    said = ("eval_loss", "eval_accepted", "eval_target_calls")
    return {
        **{name: best[name] for name in said if name in best}, "best_epoch": best["epoch"], "epochs": state.epoch,
        "steps": state.global_step, "history": state.log_history,
    }  # fmt: skip
