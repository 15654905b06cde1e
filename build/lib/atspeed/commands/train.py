r"""Stage 3: train the draft on the recommendation loss and an alignment loss, and keep what the target accepts most of.

    bash script/train.sh
    atspeed train --dataset toy --model_class AtSpeedSModel --base_model model/tiny \
        --target_model output/toy/target --train_data output/toy/train_teacher_data \
        --valid_data output/toy/eval_teacher_data --output_dir output/toy/draft
"""

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from atspeed.benchmark.methods import check_fit
from atspeed.checkpoints.checkpoint import Checkpoint, open_checkpoint, save_checkpoint, whole_weights
from atspeed.checkpoints.model_files import check_model_path
from atspeed.checkpoints.shapes import check_dtype
from atspeed.data.teacher_data import TeacherData
from atspeed.training.objectives import ITEM, Objective, make_objective
from atspeed.training.policy import Shares
from atspeed.training.precision import check_mixed_precision, check_precision
from atspeed.training.schedule import Schedule, check_selection
from genrec.data.dataset import Dataset, load_dataset, take
from genrec.runtime.artefacts import already_done, clear, is_done, make_facts
from genrec.runtime.cli import process_count
from genrec.runtime.errors import UserError

if TYPE_CHECKING:
    from atspeed.data.samples import Samples

STAGE = "train"
FREE = ("output_dir", "report_to", "save_steps", "overwrite")  # do not change the result
logger = logging.getLogger(__name__)


def main(
    model_class: str,
    base_model: str,
    target_model: str,
    train_data: str,
    valid_data: str,
    output_dir: str,
    dataset: str,
    data_path: str = "data",
    index: str | None = None,
    alpha: float = 0.7,
    temperature: float = 1.0,
    top_k: int = 20,
    alignment_over: str | None = None,
    constrained_alignment: bool | None = None,
    density: bool = True,
    constrained_softmax: bool | None = None,
    r_original: float = 0.0,
    r_student: float = 0.0,
    select_by: str = "accepted",
    select_users: int = 200,
    select_beam_size: int = 10,
    dtype: str = "float32",
    mixed_precision: str | None = None,
    epochs: int = 20,
    batch_size: int = 256,
    micro_batch_size: int = 16,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    warmup_steps: int = 100,
    patience: int = 5,
    gradient_checkpointing: bool = False,
    save_steps: int = 0,
    seed: int = 0,
    report_to: str = "none",
    overwrite: bool = False,
) -> None:
    arguments = {k: v for k, v in locals().items() if k not in FREE}
    output, weights = Path(output_dir), check_dtype(dtype)
    objective = make_objective(model_class, top_k, alignment_over, constrained_softmax, constrained_alignment, density)
    shares = Shares(r_original, r_student, seed)
    shares.check(model_class, objective)
    check_selection(select_by, select_users)
    check_precision(mixed_precision)
    schedule = Schedule(
        epochs, batch_size, micro_batch_size, learning_rate, weight_decay, warmup_steps, patience, seed, report_to,
        gradient_checkpointing, save_steps=save_steps, select_by=select_by,
    )  # fmt: skip
    schedule.check(process_count())
    data = load_dataset(data_path, dataset, index)
    check_fit(data.catalogue, "select_beam_size", select_beam_size)
    target = open_checkpoint(target_model, "finetune_llama", "finetune_llama", data)
    arguments["target"] = target.fingerprint
    taught = _open_teacher_data(train_data, valid_data, data, target, objective, shares)
    check_model_path(base_model)
    work = output.with_name(output.name + ".work")
    if is_done(output, work, STAGE, arguments, overwrite):
        return

    from accelerate.utils import set_seed

    from atspeed.checkpoints.loading import (
        check_positions,
        check_same_vocabulary,
        load_model,
        load_model_config,
        load_tokenizer,
        vocabulary_size,
    )
    from atspeed.data.compared import ComparedTokens
    from atspeed.processes import this_process, training_device
    from atspeed.training.alignment import Alignment, DataPolicy
    from atspeed.training.selection import Selection
    from atspeed.training.trainer import fit
    from beamsd import Trie

    state, schedule = this_process(), replace(schedule, mixed_precision=check_mixed_precision(mixed_precision, weights))
    tokenizer = load_tokenizer(target_model)
    check_same_vocabulary(base_model, tokenizer, data.catalogue)
    check_positions(base_model, target.setting.cutoff, "give another draft, or a target with a cutoff")
    with state.main_process_first():
        if already_done(output, work, STAGE, arguments, overwrite):
            return

    trie, live = Trie(data.catalogue.token_ids(tokenizer)), None
    held = taught[0].plan.alignment_over
    width = ComparedTokens(held, trie).width(vocabulary_size(target_model))
    train, valid = (_samples(tokenizer, data, target, teacher, width) for teacher in taught)
    if select_users or shares.needs_target(objective, all(each.plan.full_vocabulary for each in taught), held):
        live = load_model(target_model, load_model_config(target_model).dtype, state.device).requires_grad_(False)
        logger.info(f"{target_model}: loaded as {live.dtype}, to score or to decode while the draft is trained")
    selection = None
    if select_users:
        selection = Selection(live, trie.to(state.device), take(valid.prompts, select_users, seed), select_beam_size)
    set_seed(seed)
    model = load_model(base_model, weights, training_device())
    model.resize_token_embeddings(vocabulary_size(target_model), mean_resizing=False)
    alignment = Alignment(objective, trie.to(state.device), alpha, temperature, held)
    policy = DataPolicy(r_original, r_student, seed, taught[0].plan.beam_size, live)
    results = fit(model, alignment, train, valid, work, schedule, state.num_processes, policy, selection)
    trained = whole_weights(model)
    if state.is_main_process:
        facts = make_facts(STAGE, arguments, setting=asdict(target.setting), results=results)
        save_checkpoint(output, model, tokenizer, data, facts, trained)
        clear(work)
        said = ", ".join(f"{name} {value:.4f}" for name, value in results.items() if name.startswith("eval_"))
        print(f"{output}: {model_class}, {said} after {results['best_epoch']:.0f} of {results['epochs']:.0f} epochs")


def _open_teacher_data(
    train: str, valid: str, data: Dataset, target: Checkpoint, objective: Objective, shares: Shares
) -> list[TeacherData]:
    """Raises UserError if they do not hold what the objective compares, and the target is not to say it either."""
    taught = [TeacherData.open(path, split, data, target) for split, path in (("train", train), ("valid", valid))]
    held = [teacher.plan.alignment_over for teacher in taught]
    if held[0] != held[1]:
        raise UserError(
            f"{train}: holds what --alignment_over {held[0]} compares, and {valid} what {held[1]} does; write both "
            "with one ALIGNMENT_OVER: bash script/generate_teacher_data.sh"
        )
    for path, teacher in zip((train, valid), taught, strict=True):
        if objective.default_prefix == ITEM and not teacher.plan.full_vocabulary and not shares.r_original:
            raise UserError(
                f"{path}: does not hold what the target says of the true items, which --model_class WordKDModel and "
                "TVDKDModel compare; write it with FULL_VOCABULARY=true bash script/generate_teacher_data.sh, or have "
                "the target say it while the draft is trained: --r_original 1"
            )
    return taught


def _samples(tokenizer, data, target, teacher: TeacherData, width: int) -> "Samples":
    from atspeed.data.samples import Samples
    from atspeed.prompts import encode_samples

    encoded = encode_samples(
        tokenizer,
        data.catalogue,
        teacher.plan.samples(data, target.setting),
        target.setting.cutoff,
        target.setting.prompt,
    )
    return Samples(encoded.prompts, encoded.responses, teacher, width)
