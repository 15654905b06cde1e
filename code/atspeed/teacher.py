"""Teacher data: the target's own top-K beams for every prompt, and its log-probabilities along them.

A beam's position is compared at the trie's legal children only, so only they are stored, once for every distinct
prefix of a prompt's beams: normalised over the full vocabulary, in float16. Shards are safetensors, each whole or not
there, so that what was interrupted resumes with the first missing shard.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from atspeed.checkpoints import Checkpoint, Setting, check_same_data
from atspeed.forward import tree_logits
from atspeed.prompts import left_pad
from beamsd import Trie, beam_search
from genrec.artefacts import read_facts
from genrec.cli import is_main_process
from genrec.dataset import Dataset, Sample, take
from genrec.errors import UserError
from genrec.files import atomic_path

STAGE, SCRIPT = "generate_teacher_data", "generate_teacher_data"


@dataclass(frozen=True)
class Plan:
    """Which prompts the teacher answers, and how."""

    split: str
    beam_size: int  # K
    subseq: bool
    max_users: int | None
    seed: int  # of the choice of max_users
    full_vocabulary: bool  # also keep full-vocabulary logits on the true item's prefix (WordKD, TVDKD)
    shard_size: int  # prompts in a shard

    def samples(self, dataset: Dataset, setting: Setting) -> list[Sample]:
        """The samples that the teacher answers, in order."""
        samples = dataset.samples(self.split, max_history=setting.max_history, subseq=self.subseq)
        return take(samples, self.max_users, self.seed)


@torch.inference_mode()
def teach(
    model: PreTrainedModel, trie: Trie, prompts: Sequence[Sequence[int]], items: Tensor, plan: Plan
) -> dict[str, Tensor]:
    """One micro-batch of teacher data, on the CPU. items: (B, L) long, the true identifiers.

    beams (B, K, L) int32; scores (B, K) float32, -inf where the trie holds fewer than K; starts (B, K, L) int32: where
    in `log_probs` (flat, float16) the children of the prefix before each token begin, in the trie's order; with
    `full_vocabulary` item_logits (B, L, V) float16.
    """
    ids, mask = (tensor.to(model.device) for tensor in left_pad(prompts))
    items = items.to(model.device)
    found = beam_search(model, ids, mask, trie=trie, width=plan.beam_size)
    tree = tree_logits(model, ids, mask, items, found.sequences)
    # Rows of one prompt that stand at the same prefix say the same: keep one of each.
    states = trie.walk(found.sequences)[..., :-1].masked_fill(~found.scores.isfinite()[..., None], trie.dead)
    row = torch.arange(len(items), device=items.device)[:, None, None]
    keys, inverse = (row * (trie.dead + 1) + states).unique(return_inverse=True)
    cells = row * tree.logits.shape[1] + tree.beam_rows
    keeper = torch.empty_like(keys).scatter_(0, inverse.flatten(), cells.flatten())
    children = trie.children(keys % (trie.dead + 1))
    legal = children != trie.dead
    log_probs = tree.logits.float().log_softmax(-1).flatten(0, 1)[keeper].gather(1, trie.tokens[children])[legal]
    starts = legal.sum(-1).cumsum(0) - legal.sum(-1)
    taught = {
        "beams": found.sequences.int(),
        "scores": found.scores,
        "starts": starts[inverse].int(),
        "log_probs": log_probs.half(),
    }
    if plan.full_vocabulary:
        taught["item_logits"] = tree.for_item().half()
    return {name: tensor.cpu().contiguous() for name, tensor in taught.items()}


def shard_path(folder: Path, shard: int, n_shards: int) -> Path:
    return folder / f"shard-{shard:05d}-of-{n_shards:05d}.safetensors"


def count_shards(n_samples: int, plan: Plan) -> int:
    return -(-n_samples // plan.shard_size)


def write_shards(
    folder: Path, model: PreTrainedModel, trie: Trie, prompts: Sequence[Sequence[int]], items: Tensor, plan: Plan,
    *, batch_size: int, rank: int, world: int,
) -> None:  # fmt: skip
    """Write those shards of this process that are not there yet. Memory grows with a shard, not with the users."""
    n_shards = count_shards(len(prompts), plan)
    mine = range(rank, n_shards, world)
    missing = [shard for shard in mine if not shard_path(folder, shard, n_shards).is_file()]
    bounds = [(s * plan.shard_size, min((s + 1) * plan.shard_size, len(prompts))) for s in missing]
    bar = tqdm(total=sum(end - start for start, end in bounds), desc=f"teacher data, {plan.split}", unit="prompt",
               disable=not is_main_process())  # fmt: skip
    for shard, (start, end) in zip(missing, bounds, strict=True):
        parts = []
        for begin in range(start, end, batch_size):
            chosen = slice(begin, min(begin + batch_size, end))
            parts.append(teach(model, trie, prompts[chosen], items[chosen], plan))
            bar.update(chosen.stop - begin)
        with atomic_path(shard_path(folder, shard, n_shards)) as partial:
            save_file(_join(parts), partial)
    bar.close()


def _join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Micro-batches as one shard: `starts` count on from one part's log_probs to the next's."""
    base = 0
    for part in parts:
        part["starts"] = part["starts"] + base
        base += len(part["log_probs"])
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class Lesson:
    """What the teacher said of one prompt."""

    beams: Tensor  # (K, L) long
    real: Tensor  # (K,)    bool, False where the trie holds fewer than K
    log_probs: Tensor  # (K, L, C) float32, of the trie's children before each token; what lies beyond them is anything
    item_logits: Tensor | None  # (L, V) float32


class TeacherData:
    """The shards of one folder, read."""

    def __init__(self, folder: Path, setting: Setting, plan: Plan, n_samples: int):
        self.setting, self.plan = setting, plan
        n_shards = count_shards(n_samples, plan)
        self.shards = []
        for shard in range(n_shards):
            path = shard_path(folder, shard, n_shards)
            if not path.is_file():
                raise UserError(f"{path}: no such shard; write it with: bash script/{SCRIPT}.sh")
            self.shards.append(load_file(path))

    @classmethod
    def open(cls, path: str, split: str, dataset: Dataset, target: Checkpoint) -> "TeacherData":
        """Raises UserError if the folder is missing, unfinished, of another split, data set or target."""
        facts = read_facts(Path(path), STAGE, SCRIPT)
        setting, plan = Setting(**facts["setting"]), Plan(**facts["plan"])
        check_same_data(path, setting, dataset)
        if plan.split != split:
            raise UserError(f"{path}: holds the {plan.split} split, the {split} split is needed here")
        if facts["target"] != target.fingerprint:
            raise UserError(f"{path}: was written by another target than {target.path}; write it again: bash "
                            f"script/{SCRIPT}.sh")  # fmt: skip
        return cls(Path(path), setting, plan, facts["samples"])

    def lesson(self, index: int, fanout: int) -> Lesson:
        """What the teacher said of the sample `index`, for a trie of that fan-out."""
        shard, row = self.shards[index // self.plan.shard_size], index % self.plan.shard_size
        log_probs = shard["log_probs"]
        cells = shard["starts"][row][..., None].long() + torch.arange(fanout)
        return Lesson(
            beams=shard["beams"][row].long(),
            real=shard["scores"][row].isfinite(),
            log_probs=log_probs[cells.clamp(max=len(log_probs) - 1)].float(),
            item_logits=shard["item_logits"][row].float() if self.plan.full_vocabulary else None,
        )


def facts_of(plan: Plan, setting: Setting, target: Checkpoint, n_samples: int) -> dict:
    """What the next stage must know of the teacher data."""
    return {"plan": asdict(plan), "setting": asdict(setting), "target": target.fingerprint, "samples": n_samples}
