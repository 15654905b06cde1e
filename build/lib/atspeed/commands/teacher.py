r"""Stage 2: let the target answer every training and validation prompt with its own top-K beams.

    bash script/generate_teacher_data.sh
    atspeed teacher --dataset toy --target_model output/toy/target \
        --output_dir output/toy

Writes OUTPUT_DIR/train_teacher_data and OUTPUT_DIR/eval_teacher_data, shard by shard; what is there already is kept.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from atspeed.benchmark.methods import check_fit
from atspeed.checkpoints.checkpoint import open_checkpoint
from atspeed.checkpoints.shapes import check_dtype
from atspeed.data.teacher_data import STAGE, TRIE, Manifest, TeacherPlan, check_alignment_over
from genrec.data.dataset import Sample, load_dataset
from genrec.runtime.artefacts import already_done, is_done, make_facts, write_facts
from genrec.runtime.progress import progress_bar

if TYPE_CHECKING:
    from atspeed.prompts import EncodedSamples

FOLDERS = {"train": "train_teacher_data", "valid": "eval_teacher_data"}


def main(
    target_model: str,
    output_dir: str,
    dataset: str,
    data_path: str = "data",
    index: str | None = None,
    beam_size: int = 20,
    subseq: bool = False,
    alignment_over: str = TRIE,
    full_vocabulary: bool = False,
    max_users: int | None = None,
    batch_size: int = 16,
    shard_size: int = 256,
    dtype: str = "float32",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    arguments = {k: v for k, v in locals().items() if k not in ("output_dir", "overwrite", "batch_size")}
    weights, over = check_dtype(dtype), check_alignment_over(alignment_over)
    data = load_dataset(data_path, dataset, index)
    check_fit(data.catalogue, "beam_size", beam_size)
    target = open_checkpoint(target_model, "finetune_llama", "finetune_llama", data)
    arguments["target"] = target.fingerprint
    plans = [
        TeacherPlan(
            split, beam_size, subseq and split == "train", max_users, seed, full_vocabulary, shard_size, dtype, over
        )
        for split in FOLDERS
    ]
    asked = [plan.samples(data, target.setting) for plan in plans]
    folders = {split: Path(output_dir) / name for split, name in FOLDERS.items()}
    done = {
        split: is_done(folder, folder, STAGE, arguments | {"split": split}, overwrite)
        for split, folder in folders.items()
    }
    if all(done.values()):
        return

    from atspeed.checkpoints.loading import load_model, load_tokenizer
    from atspeed.data.teacher import finish, prepare, write_shards
    from atspeed.processes import this_process
    from atspeed.prompts import encode_samples
    from beamsd import Trie

    state, tokenizer = this_process(), load_tokenizer(target_model)
    trie = Trie(data.catalogue.token_ids(tokenizer)).to(state.device)

    def encode_rows(samples: list[Sample], rows: range) -> "EncodedSamples":
        return encode_samples(
            tokenizer, data.catalogue, [samples[i] for i in rows], target.setting.cutoff, target.setting.prompt
        )

    left = []
    for (split, folder), plan, samples in zip(folders.items(), plans, asked, strict=True):
        if done[split]:
            continue
        manifest = Manifest(plan, target.setting, target.fingerprint, len(samples))
        with state.main_process_first():
            if already_done(folder, folder, STAGE, arguments | {"split": split}, overwrite):
                continue
            if state.is_main_process:
                prepare(folder, manifest)
        left.append((split, folder, samples, manifest))
    if not left:
        return
    model, written = load_model(target_model, weights, state.device), []
    bar = progress_bar(sum(len(samples) for _, _, samples, _ in left), "teacher data", "prompt")
    for split, folder, samples, manifest in left:
        write_shards(folder, model, trie, partial(encode_rows, samples), manifest, batch_size, bar.update)
        state.wait_for_everyone()
        if state.is_main_process:
            contents = finish(folder, manifest)
            write_facts(folder, make_facts(STAGE, arguments | {"split": split}, **contents))
            written.append(f"{folder}: {len(samples)} prompts, {beam_size} beams each")
    bar.close()
    print("\n".join(written), end="\n" if written else "")
