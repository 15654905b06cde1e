"""Resuming: a killed training continues from its last complete checkpoint, to the same result.

What the Trainer of transformers leaves open: it writes a checkpoint file by file under its final name, forgets on
resuming that early stopping has struck, and logs there a mean over fewer steps than an uninterrupted run does.
"""

import logging
import shutil
from pathlib import Path
from zlib import crc32

from transformers import TrainerCallback, TrainerState

from atspeed.processes import this_process
from genrec.runtime.errors import UserError
from genrec.runtime.files import contents, read_json, write_json

logger = logging.getLogger(__name__)

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
        self.mark(written)
        for folder in written.parent.glob("checkpoint-*"):
            if folder != written and str(folder) != state.best_model_checkpoint:
                shutil.rmtree(folder)

    @staticmethod
    def mark(checkpoint: Path) -> None:
        """Say that a checkpoint is whole, and what is in it."""
        write_json(checkpoint / WHOLE, _checksums(checkpoint))


def last_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint in `work` that a training can go on from, to be called by all processes.

    What was killed half-written is removed. So is what is damaged, which the log says: then an earlier one is taken, or
    None. One can be gone on from if it is whole and so is the best until then, whose weights the model is to end with.
    """
    with this_process().main_process_first():
        found = sorted(work.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
        whole = [folder for folder in found if _is_whole(folder)]
        last = next((folder for folder in reversed(whole) if _best(folder) in (None, *whole)), None)
        if this_process().is_main_process:
            for folder in set(found) - set(whole):
                if (folder / WHOLE).exists():
                    start = f"{last.name} of the same folder" if last else "the start"
                    logger.warning(f"{folder}: is damaged and was removed; training goes on from {start}")
                shutil.rmtree(folder)
        return last


def _checksums(folder: Path) -> dict[str, list[int]]:
    """Bytes and CRC-32 of the files of a checkpoint. CRC-32 takes a third of a second a GB, where a hash takes one."""
    return {name: [(folder / name).stat().st_size, _crc32(folder / name)] for name in contents(folder) if name != WHOLE}


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = crc32(block, value)
    return value


def _is_whole(folder: Path) -> bool:
    mark = folder / WHOLE
    if mark.is_file() and not mark.stat().st_size:  # of a run begun before anything was kept
        return True
    try:
        marked = read_json(mark)
    except UserError:  # not there, or damaged itself
        return False
    found = _checksums(folder)
    if isinstance(marked, dict) and all(isinstance(size, int) for size in marked.values()):  # only sizes were kept
        return marked == {name: size for name, (size, _) in found.items()}
    return marked == found


def _best(checkpoint: Path) -> Path | None:
    """The best checkpoint up to this one; None before the first evaluation."""
    best = TrainerState.load_from_json(str(checkpoint / STATE)).best_model_checkpoint
    return best and checkpoint.with_name(Path(best).name)


def epochs_left_open(checkpoint: Path | None, epochs: int) -> int:
    """`epochs`, or those that were run if the training was over, by early stopping too, when it was killed."""
    if checkpoint is None:
        return epochs
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    over = state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]
    return round(state.epoch) if over else epochs
