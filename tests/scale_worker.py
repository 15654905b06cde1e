"""Started as processes of its own by test_scale.py: one training, in several processes or killed on its way.

python -m torch.distributed.run --standalone --nproc_per_node 2 scale_worker.py together FOLDER
python scale_worker.py killed FOLDER
"""

import os
import signal
import sys
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import LlamaForCausalLM, TrainerCallback, TrainerState

from atspeed.checkpoints.checkpoint import whole_weights
from atspeed.checkpoints.lora import add_lora, merge_lora
from atspeed.data.samples import Samples
from atspeed.processes import this_process
from atspeed.training import trainer as training
from atspeed.training.objectives import make_objective
from beamsd import Trie
from conftest import LENGTH, VOCABULARY, assert_waits_long, random_items, tiny_llama
from genrec.runtime.cli import leave_process_group
from genrec.runtime.files import write_json

N, BEAMS, ITEM_TOKENS = 45, 4, [30, 31, 32]


class Taught(Samples):
    """Samples with beams, of which the rows have different numbers: what a mean over a batch trips on."""

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)
        items = random_items(60)
        self.trie = Trie(items)
        prompts = [torch.randint(4, VOCABULARY, (3 + i % 5,), generator=generator).tolist() for i in range(N)]
        beams = items[torch.randint(len(items), (N, BEAMS), generator=generator)]
        super().__init__(prompts, torch.cat([beams[:, 0], torch.full((N, 1), 2)], -1))
        self.beams, self.real = beams, torch.arange(BEAMS) <= torch.arange(N)[:, None] % BEAMS
        self.log_probs = torch.randn(N, BEAMS, LENGTH, self.trie.fanout, generator=generator).log_softmax(-1)

    def __getitem__(self, index: int) -> dict:
        lesson = {name: getattr(self, name)[index] for name in ("beams", "real", "log_probs")}
        return super().__getitem__(index) | lesson


def train(folder: Path, world: int, **changes: object) -> tuple[LlamaForCausalLM | PeftModel, dict]:
    """45 samples in batches of 16, micro-batches of 4: the last batch and the last micro-batch are not full."""
    torch.manual_seed(0)
    model, train, valid = tiny_llama(7, 1), Taught(1), Taught(2)
    if "lora" in changes:
        model = add_lora(model, ITEM_TOKENS, rank=2, alpha=4, dropout=changes.pop("lora"))
    settings = {"epochs": 3, "batch_size": 16, "micro_batch_size": 4, "learning_rate": 1e-2, "weight_decay": 0.0,
                "warmup_steps": 2, "patience": 3, "seed": 0, "report_to": "none"} | changes  # fmt: skip
    alignment = training.Alignment(make_objective("AtSpeedRModel", 5), train.trie, alpha=0.7)
    return model, training.fit(model, alignment, train, valid, folder, training.Schedule(**settings), world)


def together(folder: Path) -> None:
    """Train in all processes and write the losses and the weights; then gather a model that lies in shards."""
    state = this_process()
    model, results = train(folder / "work", state.num_processes)
    assert_waits_long()
    if state.is_main_process:
        write_json(folder / "history.json", results["history"])
        torch.save(model.state_dict(), folder / "weights.pt")
    torch.manual_seed(0)
    trained = add_lora(tiny_llama(7, 1), ITEM_TOKENS, rank=2, alpha=4, dropout=0.0)
    with torch.no_grad():
        for weight in trained.parameters():
            if weight.requires_grad:
                weight += torch.randn_like(weight)
    expected = merge_lora(trained, whole_weights(trained), tiny_llama(7, 1)).state_dict()
    fully_shard(trained)
    assert isinstance(trained, FSDPModule)
    assert any(weight.to_local().shape != weight.shape for weight in trained.parameters())
    weights = whole_weights(trained)
    if state.is_main_process:
        merged = merge_lora(trained, weights, tiny_llama(7, 1)).state_dict()
        assert merged.keys() == expected.keys()
        assert all(torch.equal(merged[name], expected[name]) for name in expected)


def sharded(folder: Path) -> None:
    """Train LoRA by FSDP as accelerate.fsdp.yaml says, on the CPU.

    accelerate offers it on accelerators only; that is lifted here, and what then runs is the real thing.
    """

    def init(self: AcceleratorState, *args: object, fsdp_plugin: object = None, **kwargs: object) -> None:
        plain(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin:
            AcceleratorState._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=fsdp_plugin)
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    plain, AcceleratorState.__init__ = AcceleratorState.__init__, init
    state = this_process()
    model, results = train(folder / "work", state.num_processes, lora=0.0)
    assert isinstance(model, FSDPModule)
    weights = whole_weights(model)
    if state.is_main_process:
        write_json(folder / "history.json", results["history"])
        torch.save(merge_lora(model, weights, tiny_llama(7, 1)).state_dict(), folder / "weights.pt")


class Kill(TrainerCallback):
    """kill -9 at the start of a step of the optimiser."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def killed_in_an_epoch(folder: Path) -> None:
    """Three steps an epoch, a checkpoint a step, LoRA with dropout: killed in the second step of the second epoch."""
    training.AlignmentTrainer.__init__ = partialmethod(_with_callback, training.AlignmentTrainer.__init__, Kill(4))
    train(folder, 1, **MOMENTS["killed_in_an_epoch"])


def _with_callback(self, init: Callable, callback: TrainerCallback, *args: object, **kwargs: object) -> None:
    init(self, *args, **kwargs | {"callbacks": [*kwargs["callbacks"], callback]})


def killed_in_a_checkpoint(folder: Path) -> None:
    """The second epoch's checkpoint lies there with its weights, and its state is half-written."""

    def save_half(state: TrainerState, path: str) -> None:
        save(state, path)
        if state.global_step == 6:
            os.truncate(path, Path(path).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    save, TrainerState.save_to_json = TrainerState.save_to_json, save_half
    train(folder, 1, **MOMENTS["killed_in_a_checkpoint"])


def killed_when_over(folder: Path) -> None:
    """Early stopping has struck, and the stage is killed before it has written its result."""
    train(folder, 1, **MOMENTS["killed_when_over"])
    os.kill(os.getpid(), signal.SIGKILL)


MOMENTS = {
    "killed_in_an_epoch": {"lora": 0.1, "save_steps": 1},
    "killed_in_a_checkpoint": {},
    # So fast that eval_loss rises at once.
    "killed_when_over": {"learning_rate": 3.0, "epochs": 6, "patience": 1},
}


def killed(folder: Path) -> None:
    """Each moment in a process of its own, which has all imports done; writes what killed it."""
    ends = {}
    for moment in MOMENTS:
        child = os.fork()
        if child == 0:
            globals()[moment](folder / moment)
            os._exit(0)
        ends[moment] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    write_json(folder / "ends.json", ends)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
    leave_process_group()
