"""Stage 1: fine-tune the target on the training samples, with LoRA or as a whole.

    bash script/finetune_llama.sh
    atspeed finetune --base_model model/tiny --output_dir output/toy/target --dataset toy

Writes a checkpoint that stands on its own: merged weights, tokenizer with the item tokens, identifiers, facts.
"""

from dataclasses import asdict, replace
from pathlib import Path

from atspeed.checkpoints.checkpoint import DataSetting, save_checkpoint, whole_weights
from atspeed.checkpoints.model_files import check_model_path
from atspeed.checkpoints.shapes import BY_LEVEL, LORA_MODULES, RANDOM, check_dtype, check_item_rows
from atspeed.template import LC_REC, PromptTemplate
from atspeed.training.objectives import make_objective
from atspeed.training.precision import check_mixed_precision, check_precision, check_quantised
from atspeed.training.schedule import Schedule
from genrec.data.dataset import load_dataset, take
from genrec.runtime.artefacts import already_done, clear, is_done, make_facts
from genrec.runtime.cli import process_count

STAGE = "finetune_llama"
FREE = ("output_dir", "report_to", "save_steps", "overwrite")  # do not change the result


def main(
    base_model: str,
    output_dir: str,
    dataset: str,
    data_path: str = "data",
    index: str | None = None,
    full: bool = False,
    lora_r: int = 8,
    lora_alpha: int = 16,
    lora_dropout: float = 0.05,
    lora_modules: tuple[str, ...] = LORA_MODULES,
    item_rows: str = RANDOM,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    dtype: str = "float32",
    mixed_precision: str | None = None,
    subseq: bool = False,
    history_loss: bool = False,
    max_users: int | None = None,
    max_history: int = 20,
    cutoff: int = 512,
    prompt_template: str | None = None,
    item_separator: str | None = LC_REC.separator,
    chat_template: bool = False,
    epochs: int = 20,
    batch_size: int = 256,
    micro_batch_size: int = 16,
    learning_rate: float = 1e-4,
    weight_decay: float = 0.0,
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
    check_precision(mixed_precision)
    check_item_rows(item_rows)
    prompt = PromptTemplate.read(prompt_template, item_separator or "", chat_template)
    arguments["prompt_template"] = prompt.text
    schedule = Schedule(
        epochs, batch_size, micro_batch_size, learning_rate, weight_decay, warmup_steps, patience, seed, report_to,
        gradient_checkpointing, save_steps=save_steps,
    )  # fmt: skip
    schedule.check(process_count())
    quantised = check_quantised(load_in_8bit, load_in_4bit, full, weights)
    data = load_dataset(data_path, dataset, index)
    train, valid = (
        take(samples, max_users, seed)
        for samples in (
            data.samples("train", max_history=max_history, subseq=subseq, in_windows=history_loss),
            data.samples("valid", max_history=max_history),
        )
    )
    check_model_path(base_model)
    work = output.with_name(output.name + ".work")
    if is_done(output, work, STAGE, arguments, overwrite):
        return

    from accelerate.utils import set_seed
    from peft import prepare_model_for_kbit_training

    from atspeed.checkpoints.loading import (
        add_item_tokens,
        begin_rows_by_level,
        check_positions,
        load_model,
        teach_tokenizer,
    )
    from atspeed.checkpoints.lora import add_lora, merge_lora
    from atspeed.data.samples import HistoryLoss, Samples
    from atspeed.processes import this_process, training_device
    from atspeed.prompts import encode_samples
    from atspeed.training.alignment import Alignment
    from atspeed.training.trainer import fit

    state, precision = this_process(), check_mixed_precision(mixed_precision, weights, frozen=not full)
    schedule = replace(schedule, mixed_precision=precision)
    tokenizer = teach_tokenizer(base_model, data.catalogue)
    check_positions(base_model, cutoff, "pass one")
    encoded = [encode_samples(tokenizer, data.catalogue, samples, cutoff, prompt) for samples in (train, valid)]
    set_seed(seed)
    model = load_model(base_model, weights, training_device(), quantised)
    item_tokens = add_item_tokens(model, tokenizer, data.catalogue)
    if item_rows == BY_LEVEL:
        begin_rows_by_level(model, tokenizer, data.catalogue, seed)
    if quantised:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # fit turns it on
    if not full:
        model = add_lora(model, item_tokens, lora_r, lora_alpha, lora_dropout, lora_modules)
    with state.main_process_first():
        if already_done(output, work, STAGE, arguments, overwrite):
            return
    history = HistoryLoss.of(encoded[0].prompts, item_tokens, data.catalogue.levels) if history_loss else None
    results = fit(
        model, Alignment(make_objective("SFTModel", 0)),
        Samples(encoded[0].prompts, encoded[0].responses, history=history),
        Samples(encoded[1].prompts, encoded[1].responses), work, schedule, state.num_processes,
    )  # fmt: skip
    trained = whole_weights(model)
    if state.is_main_process:
        if not full:
            base = load_model(base_model, weights)
            add_item_tokens(base, tokenizer, data.catalogue)
            model = merge_lora(model, trained, base)
        facts = make_facts(
            STAGE, arguments, setting=asdict(DataSetting.of(data, max_history, cutoff, prompt)), results=results
        )
        save_checkpoint(output, model, tokenizer, data, facts, trained if full else None)
        clear(work)
        print(f"{output}: eval_loss {results['eval_loss']:.4f} after {results['epochs']:.0f} epochs")
