"""A training that is killed at any moment goes on from its last whole checkpoint and ends as it would have.

What the Trainer of transformers leaves open: it writes a checkpoint file by file under its final name, forgets on
resuming that early stopping has struck, and logs there a mean over fewer steps than an uninterrupted run does.
"""

import shutil
from pathlib import Path

from transformers import TrainerCallback, TrainerState

from atspeed.processes import this_process
from genrec.files import write_text

STATE, WHOLE = "trainer_state.json", "whole"


class WholeCheckpoints(TrainerCallback):
    """Also saves within an epoch; marks a checkpoint once all processes have written it, then drops older ones."""

    def __init__(self, save_steps: int):
        """save_steps: steps of the optimiser between checkpoints within an epoch; 0 for none."""
        self.save_steps = save_steps

    def on_step_end(self, args, state, control, **kwargs):
        """The epoch's last step is left to the epoch's end, where the model is evaluated before it is saved."""
        if self.save_steps and state.global_step % self.save_steps == 0 and state.epoch % 1:
            control.should_save = control.should_log = True

    def on_epoch_end(self, args, state, control, **kwargs):
        """No loss is left over that a resumed run would not know of."""
        control.should_log = True

    def on_save(self, args, state, control, **kwargs):
        this_process().wait_for_everyone()
        if not state.is_world_process_zero:
            return
        written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_text(written / WHOLE, "")
        for folder in written.parent.glob("checkpoint-*"):
            if folder != written and str(folder) != state.best_model_checkpoint:
                shutil.rmtree(folder)


def last_checkpoint(work: Path) -> Path | None:
    """The newest whole checkpoint in `work`, to be called by all processes; what was killed half-written is removed."""
    with this_process().main_process_first():
        found = list(work.glob("checkpoint-*"))
        whole = [folder for folder in found if (folder / WHOLE).is_file()]
        if this_process().is_main_process:
            for folder in set(found) - set(whole):
                shutil.rmtree(folder)
        return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def epochs_left_open(checkpoint: Path | None, epochs: int) -> int:
    """`epochs`, or those that were run if the training was over, by early stopping too, when it was killed."""
    if checkpoint is None:
        return epochs
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    over = state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]
    return round(state.epoch) if over else epochs
