"""One training loop for TIGER, UniSRec and both stages of SpecGR++.

What a step does follows from its number alone: which rows, which dropout, which learning rate. So a training that is
killed goes on from its last checkpoint and ends as it would have. A checkpoint is a folder that appears whole.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from safetensors.torch import load_file, save_file
from torch import Tensor

from genrec.runtime.cli import GROUP_TIMEOUT
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path, write_json
from genrec.runtime.text import read_json
from specgr.configuration.config import ContrastivePlan, TrainingPlan
from specgr.training.loss_modules import LossModule

logger = logging.getLogger(__name__)

STATE, WEIGHTS, BEST, OPTIMIZER = "state.json", "model.safetensors", "best.safetensors", "optimizer.safetensors"
LOG_STEPS = 100
GENERATION = 1  # tells the order of the generation loss from that of the other


@dataclass
class State:
    """The state of a training."""

    step: int = 0
    best: float = -1.0
    best_step: int = 0
    since: int = 0  # validations since the best
    history: list[dict] = field(default_factory=list)  # of the validations


def new_accelerator() -> Accelerator:
    """Which of how many processes this is: on GPUs, or by gloo on the CPU."""
    group = InitProcessGroupKwargs(timeout=GROUP_TIMEOUT)
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[group])


def fit_weights(
    objective: LossModule,
    plan: TrainingPlan,
    seed: int,
    work: Path,
    accelerator: Accelerator,
    validate: Callable[[], float],
) -> State:
    """Train `objective.model`, which ends with the weights that `validate` found best, those of the start among them.

    validate: called by all processes, gives all the same number; more is better. Checkpoints go to `work`; the last is
    resumed. To be called by all processes.
    """
    epoch = epoch_steps(len(objective.examples), plan)
    total = plan.epochs * epoch or plan.steps
    every = plan.eval_steps or epoch
    objective.to(accelerator.device)
    optimizer = torch.optim.AdamW(
        [weight for weight in objective.parameters() if weight.requires_grad], plan.learning_rate,
        weight_decay=plan.weight_decay,
    )  # fmt: skip
    state, best = _resume(work, objective, optimizer)
    if not state.history:  # what another stage trained may be the best already
        best = _judge(state, validate, "", objective, best)
    shared, sums, begun = accelerator.prepare(objective), [], time.monotonic()
    while state.step < total and not _over(state, plan):
        objective.train()
        torch.manual_seed(_mixed(seed, state.step, accelerator.process_index))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(plan, state.step, total)
        mine = slice(accelerator.process_index, None, accelerator.num_processes)
        rows = step_rows(len(objective.examples), plan, state.step, seed)
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=plan.bf16):
            parts = shared(*(each[mine] for each in rows))
        optimizer.zero_grad()
        accelerator.backward(parts.float().sum())
        if plan.clip_norm:
            accelerator.clip_grad_norm_(objective.parameters(), plan.clip_norm)
        optimizer.step()
        sums.append(parts.detach())
        state.step += 1
        if state.step % LOG_STEPS == 0:
            logger.info(f"step {state.step} of {total}: {_named(objective, sums[-LOG_STEPS:])}")
        if state.step % every == 0 or state.step == total:
            losses, sums = _named(objective, sums), []
            if not all(weight.isfinite().all() for weight in objective.model.parameters()):
                raise UserError(f"after step {state.step} not all weights are numbers ({losses}); lower learning_rate, "
                                f"{plan.learning_rate:g} here")  # fmt: skip
            best = _judge(state, validate, losses, objective, best)
            logger.info(f"step {state.step} of {total}: {losses}; validation {state.history[-1]['score']:.4f}, best "
                        f"{state.best:.4f} at step {state.best_step}; {time.monotonic() - begun:.0f} s")  # fmt: skip
            _save(work, state, objective, best, optimizer, accelerator)
    objective.model.load_state_dict(best)
    objective.eval()
    return state


def _mixed(*numbers: int) -> int:
    """One seed made of several."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def epoch_steps(n: int, plan: TrainingPlan) -> int:
    """The steps in which every sample is seen, in the batches of each loss; n samples."""
    sizes = [plan.batch_size, plan.generation_batch_size] if isinstance(plan, ContrastivePlan) else [plan.batch_size]
    return math.ceil(n / min(sizes))


def step_rows(n: int, plan: TrainingPlan, step: int, seed: int) -> list[Tensor]:
    """The rows of a step, of all processes: the batch, and for SpecGR++ one of the generation loss, drawn apart."""
    rows = [batch_rows(n, plan.batch_size, step, seed)]
    if isinstance(plan, ContrastivePlan):
        rows.append(batch_rows(n, plan.generation_batch_size, step, seed, GENERATION))
    return rows


def batch_rows(n: int, batch_size: int, step: int, seed: int, loss: int = 0) -> Tensor:
    """The rows (batch_size,) of a step: each round a new order, its last batch filled up from its beginning. loss: by
    which the orders of several differ."""
    epoch, batch = divmod(step, math.ceil(n / batch_size))
    return _order(n, _mixed(seed, epoch, loss))[torch.arange(batch * batch_size, (batch + 1) * batch_size) % n]


@lru_cache(maxsize=2)
def _order(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def learning_rate(plan: TrainingPlan, step: int, total: int) -> float:
    """Linear warm-up, then constant or half a cosine down to 0 at `total`."""
    if step < plan.warmup_steps:
        return plan.learning_rate * (step + 1) / plan.warmup_steps
    done = (step - plan.warmup_steps) / max(1, total - plan.warmup_steps)
    return plan.learning_rate * (0.5 * (1 + math.cos(math.pi * done)) if plan.cosine else 1.0)


def _over(state: State, plan: TrainingPlan) -> bool:
    return bool(plan.patience) and state.since >= plan.patience


def _named(objective: LossModule, sums: list[Tensor]) -> str:
    means = torch.stack(sums).mean(0).tolist()
    return ", ".join(f"{name} {mean:.4f}" for name, mean in zip(objective.parts, means, strict=True))


def _judge(
    state: State, validate: Callable[[], float], losses: str, objective: LossModule, best: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Validate the present weights and record the result. Returns the best weights, which may be these."""
    objective.eval()
    score = validate()
    state.history.append({"step": state.step, "score": score, "losses": losses})
    state.since += 1
    if score > state.best:
        state.best, state.best_step, state.since = score, state.step, 0
        best = deepcopy(objective.model.state_dict())
    return best


def _save(work: Path, state: State, objective: LossModule, best: dict, optimizer, accelerator: Accelerator) -> None:
    """Write a new checkpoint, then remove the previous one."""
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    with atomic_path(work / f"checkpoint-{state.step}") as partial:
        partial.mkdir()
        save_file(_apart(objective.model.state_dict()), partial / WEIGHTS)
        save_file(_apart(best), partial / BEST)
        moments = optimizer.state_dict()["state"]
        save_file({f"{i}.{k}": v for i, one in moments.items() for k, v in one.items()}, partial / OPTIMIZER)
        write_json(partial / STATE, asdict(state))
    for folder in work.glob("checkpoint-*"):
        if folder.name != f"checkpoint-{state.step}":
            shutil.rmtree(folder)


def _resume(work: Path, objective: LossModule, optimizer: torch.optim.Optimizer) -> tuple[State, dict[str, Tensor]]:
    """The last checkpoint, or the beginning."""
    last = max(work.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
    if last is None:
        return State(), deepcopy(objective.model.state_dict())
    state, device = State(**read_json(last / STATE)), next(objective.parameters()).device
    objective.model.load_state_dict(load_file(last / WEIGHTS, str(device)))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in load_file(last / OPTIMIZER).items():
        number, _, key = name.partition(".")
        moments.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    logger.info(f"{last}: resumed")
    return state, load_file(last / BEST, str(device))


def _apart(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tied weights as copies, since safetensors refuses names that share memory."""
    return {name: weight.detach().cpu().clone() for name, weight in weights.items()}
