"""Stage 2: let the target answer every training and validation prompt with its own top-K beams.

    bash script/generate_teacher_data.sh
    accelerate launch code/generate_teacher_data.py --dataset toy --target_model output/toy/target \
        --output_dir output/toy

Writes OUTPUT_DIR/train_teacher_data and OUTPUT_DIR/eval_teacher_data, shard by shard; what is there already is kept.
"""

from pathlib import Path

from atspeed.checkpoints import open_checkpoint
from atspeed.models import check_dtype, load_model, load_tokenizer
from atspeed.processes import this_process
from atspeed.prompts import encode_samples
from atspeed.teacher import STAGE, Plan, facts_of, write_shards
from beamsd import Trie
from genrec.artefacts import FACTS, already_done, make_facts
from genrec.cli import run
from genrec.dataset import load_dataset
from genrec.errors import UserError
from genrec.files import write_json

FOLDERS = {"train": "train_teacher_data", "valid": "eval_teacher_data"}


def main(
    target_model: str,
    output_dir: str,
    dataset: str,
    data_path: str = "data",
    index: str | None = None,
    beam_size: int = 20,
    subseq: bool = False,
    full_vocabulary: bool = False,
    max_users: int | None = None,
    batch_size: int = 16,
    shard_size: int = 512,
    dtype: str = "float32",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    arguments = {k: v for k, v in locals().items() if k not in ("output_dir", "overwrite", "batch_size")}
    state = this_process()
    weights = check_dtype(dtype)
    if min(beam_size, batch_size, shard_size) < 1:
        raise UserError("--beam_size, --batch_size and --shard_size must be at least 1")
    data = load_dataset(data_path, dataset, index)
    target = open_checkpoint(target_model, "finetune_llama", "finetune_llama", data)
    arguments["target"] = target.fingerprint
    tokenizer, model = load_tokenizer(target_model), None
    trie = Trie(data.catalogue.token_ids(tokenizer)).to(state.device)

    for split, name in FOLDERS.items():
        folder = Path(output_dir) / name
        with state.main_process_first():
            if already_done(folder, folder, STAGE, arguments | {"split": split}, overwrite):
                continue
        if model is None:
            model = load_model(target_model, weights).to(state.device)
        plan = Plan(split, beam_size, subseq and split == "train", max_users, seed, full_vocabulary, shard_size)
        samples = plan.samples(data, target.setting)
        encoded = encode_samples(tokenizer, data.catalogue, samples, target.setting.cutoff)
        write_shards(
            folder, model, trie, encoded.prompts, encoded.items, plan,
            batch_size=batch_size, rank=state.process_index, world=state.num_processes,
        )  # fmt: skip
        state.wait_for_everyone()
        if state.is_main_process:
            more = facts_of(plan, target.setting, target, len(samples))
            write_json(folder / FACTS, make_facts(STAGE, arguments | {"split": split}, **more))
            print(f"{folder}: {len(samples)} prompts, {beam_size} beams each")


if __name__ == "__main__":
    run(main)
