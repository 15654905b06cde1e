"""Stage 3: train the draft on the recommendation loss and an alignment loss against the teacher data.

    bash script/train.sh
    accelerate launch code/train.py --dataset toy --model_class AtSpeedSModel --base_model model/tiny \
        --target_model output/toy/target --train_data output/toy/train_teacher_data \
        --valid_data output/toy/eval_teacher_data --output_dir output/toy/draft
"""

import shutil
from dataclasses import asdict
from pathlib import Path

from accelerate.utils import set_seed

from atspeed.checkpoints import open_checkpoint, save_checkpoint, whole_weights
from atspeed.models import check_dtype, check_same_vocabulary, load_model, load_tokenizer, vocabulary_size
from atspeed.objectives import make_objective
from atspeed.precision import check_mixed_precision
from atspeed.processes import this_process
from atspeed.prompts import encode_samples
from atspeed.teacher import TeacherData
from atspeed.training import Alignment, Samples, Schedule, fit
from beamsd import Trie
from genrec.artefacts import already_done, make_facts
from genrec.cli import run
from genrec.dataset import load_dataset
from genrec.errors import UserError

STAGE = "train"
FREE = ("output_dir", "report_to", "save_steps", "overwrite")  # do not change the result


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
    constrained_softmax: bool = True,
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
    state, output = this_process(), Path(output_dir)
    objective, weights = make_objective(model_class, top_k), check_dtype(dtype)
    schedule = Schedule(
        epochs, batch_size, micro_batch_size, learning_rate, weight_decay, warmup_steps, patience, seed, report_to,
        gradient_checkpointing, check_mixed_precision(mixed_precision, weights), save_steps,
    )  # fmt: skip
    schedule.check(state.num_processes)
    if not 0 <= alpha <= 1 or temperature <= 0 or top_k < 1:
        raise UserError("--alpha must be in 0..1, --temperature above 0 and --top_k at least 1")
    data = load_dataset(data_path, dataset, index)
    target = open_checkpoint(target_model, "finetune_llama", "finetune_llama", data)
    arguments["target"] = target.fingerprint
    tokenizer = load_tokenizer(target_model)
    check_same_vocabulary(base_model, tokenizer, data.catalogue)
    trie = Trie(data.catalogue.token_ids(tokenizer))
    taught = [
        TeacherData.open(path, split, data, target) for split, path in (("train", train_data), ("valid", valid_data))
    ]
    if objective.needs_item_logits and not all(teacher.plan.full_vocabulary for teacher in taught):
        raise UserError(
            f"--model_class {model_class} compares whole vocabularies, which {train_data} does not hold; write it with "
            "FULL_VOCABULARY=true bash script/generate_teacher_data.sh"
        )
    work = output.with_name(output.name + ".work")
    with state.main_process_first():
        if already_done(output, work, STAGE, arguments, overwrite):
            return

    set_seed(seed)
    model = load_model(base_model, weights)
    model.resize_token_embeddings(vocabulary_size(target_model), mean_resizing=False)
    train, valid = (_samples(tokenizer, data, target, teacher, trie) for teacher in taught)
    alignment = Alignment(objective, trie.to(state.device), alpha, temperature, constrained_softmax)
    results = fit(model, alignment, train, valid, work, schedule, state.num_processes)
    trained = whole_weights(model)
    if state.is_main_process:
        facts = make_facts(STAGE, arguments, setting=asdict(target.setting), results=results)
        save_checkpoint(output, model, tokenizer, data, facts, trained)
        shutil.rmtree(work)
        print(f"{output}: {model_class}, eval_loss {results['eval_loss']:.4f} after {results['epochs']:.0f} epochs")


def _samples(tokenizer, data, target, teacher: TeacherData, trie: Trie) -> Samples:
    encoded = encode_samples(
        tokenizer, data.catalogue, teacher.plan.samples(data, target.setting), target.setting.cutoff
    )
    return Samples(encoded.prompts, encoded.responses, teacher, trie.fanout)


if __name__ == "__main__":
    run(main)
