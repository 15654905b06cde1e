"""Teacher data on disk: their manifest, and how they are read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atspeed.checkpoints.checkpoint import Checkpoint, DataSetting, check_same_data
from atspeed.data.shards import Origin, check_shard, load_shard, shard_path
from genrec.data.dataset import Dataset, Sample, take
from genrec.runtime.artefacts import from_facts, read_facts
from genrec.runtime.cli import is_local_main_process
from genrec.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

STAGE, SCRIPT = "generate_teacher_data", "generate_teacher_data"
FORMAT = 3
# What an alignment loss compares before each token of a beam: the trie's children of the beam's prefix, all codes of
# the level (as in the released code), or every token of the vocabulary. Each holds what those before it hold.
TRIE, LEVEL, VOCABULARY = "trie", "level", "vocabulary"
ALIGNMENT_OVER = (TRIE, LEVEL, VOCABULARY)
AGAIN = f"write it again: bash script/{SCRIPT}.sh"


@dataclass(frozen=True)
class TeacherPlan:
    """The prompts that the teacher answers, and the settings of its beam search."""

    split: str
    beam_size: int  # K
    subseq: bool
    max_users: int | None
    seed: int  # of the choice of max_users
    full_vocabulary: bool  # also keep the full vocabulary on the true item's prefix (WordKD, TVDKD)
    shard_size: int  # prompts in a shard
    dtype: str = "float32"  # of the target's weights
    alignment_over: str = TRIE  # of what tokens the log-probabilities along the beams are kept, of `ALIGNMENT_OVER`

    def samples(self, dataset: Dataset, setting: DataSetting) -> list[Sample]:
        """The samples that the teacher answers, in order."""
        samples = dataset.samples(self.split, max_history=setting.max_history, subseq=self.subseq)
        return list(take(samples, self.max_users, self.seed))


@dataclass(frozen=True)
class Manifest:
    """The origin of a folder of teacher data."""

    plan: TeacherPlan
    setting: DataSetting  # data set, identifiers, splits
    target: str  # fingerprint
    samples: int  # prompts in all

    @property
    def n_shards(self) -> int:
        return -(-self.samples // self.plan.shard_size)

    def rows(self, shard: int) -> range:
        """The samples that a shard holds."""
        start = shard * self.plan.shard_size
        return range(start, min(start + self.plan.shard_size, self.samples))

    def origin(self, shard: int) -> Origin:
        """What a shard says of itself."""
        whole = {"format": FORMAT, "target": self.target, "samples": self.samples, "shard": shard}
        return asdict(self.plan) | asdict(self.setting) | whole

    def check(self, folder: Path, shard: int, fix: str, contents: bool = True) -> str:
        """The SHA-256 of a shard's contents. Raises UserError, which ends in `fix`, if it is not there or is not it."""
        return check_shard(shard_path(folder, shard, self.n_shards), self.origin(shard), fix, contents)


@dataclass(frozen=True)
class SampleTargets:
    """The teacher's beams and log-probabilities for one prompt."""

    beams: Tensor  # (K, L) long
    real: Tensor  # (K,)    bool, False where the trie holds fewer than K
    log_probs: Tensor  # (K, L, C) float32, of `plan.alignment_over` before each token; what lies beyond is anything
    item_logits: Tensor | None  # (L, V) float32, normalised


class TeacherData:
    """The shards of one folder, read on access."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self.manifest, self.plan = folder, manifest, manifest.plan

    @classmethod
    def open(cls, path: str, split: str, dataset: Dataset, target: Checkpoint) -> TeacherData:
        """Checks the header of every shard, and on one process of each node its contents too.

        Raises UserError if the folder is missing, unfinished, of another split, data set or target, or if a shard is
        damaged or of another run.
        """
        facts = read_facts(Path(path), STAGE, SCRIPT)
        if facts.get("format") != FORMAT:
            raise UserError(f"{path}: was written by another version of this stage; {AGAIN} --overwrite")
        setting = from_facts(path, facts, "setting", DataSetting)
        check_same_data(path, setting, dataset)
        manifest = Manifest(from_facts(path, facts, "plan", TeacherPlan), setting, facts["target"], facts["samples"])
        if manifest.plan.split != split:
            raise UserError(f"{path}: holds the {manifest.plan.split} split, the {split} split is needed here")
        if manifest.target != target.fingerprint:
            raise UserError(f"{path}: was written by another target than {target.path}; {AGAIN} --overwrite")
        for shard, expected in enumerate(facts["shards"]):
            found = manifest.check(Path(path), shard, AGAIN, contents=False)
            if found != expected:
                raise UserError(f"{shard_path(Path(path), shard, manifest.n_shards)}: has not the hash that {path} "
                                f"gives of it; {AGAIN} --overwrite")  # fmt: skip
        if is_local_main_process():
            for shard in range(manifest.n_shards):
                manifest.check(Path(path), shard, AGAIN)
        return cls(Path(path), manifest)

    def targets_of(self, index: int, width: int) -> SampleTargets:
        """What the teacher said of the sample `index`. width: C, the most tokens that are held before a token."""
        import torch

        shard, row = divmod(index, self.plan.shard_size)
        held = load_shard(shard_path(self.folder, shard, self.manifest.n_shards))
        log_probs = held["log_probs"]
        cells = held["offsets"][row] + held["starts"][row][..., None].long() + torch.arange(width)
        return SampleTargets(
            beams=held["beams"][row].long(),
            real=held["scores"][row].isfinite(),
            log_probs=log_probs[cells.clamp(max=len(log_probs) - 1)].float(),
            item_logits=held["item_logits"][row].float() if self.plan.full_vocabulary else None,
        )


def check_alignment_over(over: str) -> str:
    """Raises UserError for what does not exist."""
    if over not in ALIGNMENT_OVER:
        raise UserError(f"--alignment_over {over}: choose from {', '.join(ALIGNMENT_OVER)}")
    return over


def holds(held: str, over: str) -> bool:
    """Whether log-probabilities of the tokens of `held` tell those of `over`."""
    return ALIGNMENT_OVER.index(over) <= ALIGNMENT_OVER.index(held)
