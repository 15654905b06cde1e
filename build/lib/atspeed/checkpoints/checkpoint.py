"""Self-contained checkpoints: merged weights, tokenizer, identifiers and facts in one folder."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from atspeed.checkpoints.model_files import check_model_folder
from atspeed.template import LC_REC, PromptTemplate
from genrec.data.catalogue import Catalogue
from genrec.data.dataset import Dataset
from genrec.runtime.artefacts import fingerprint, from_facts, read_facts, write_facts
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CATALOGUE = "catalogue.json"


@dataclass(frozen=True)
class DataSetting:
    """The data and limits that a target was fine-tuned for; later stages read them from its facts."""

    dataset: str
    catalogue: str  # fingerprint
    splits: str  # fingerprint
    max_history: int
    cutoff: int  # tokens of prompt, identifier and EOS
    # The prompt, see `PromptTemplate`; targets that do not say have that of LC-Rec.
    template: str = LC_REC.text
    separator: str = LC_REC.separator
    chat: bool = LC_REC.chat

    @classmethod
    def of(cls, dataset: Dataset, max_history: int, cutoff: int, prompt: PromptTemplate = LC_REC) -> DataSetting:
        fingerprints = dataset.catalogue.fingerprint, dataset.splits.fingerprint
        return cls(dataset.name, *fingerprints, max_history, cutoff, prompt.text, prompt.separator, prompt.chat)

    @property
    def prompt(self) -> PromptTemplate:
        return PromptTemplate(self.template, self.separator, self.chat)


@dataclass(frozen=True)
class Checkpoint:
    """A finished model folder, checked but not loaded."""

    path: str
    setting: DataSetting
    fingerprint: str


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights, under FSDP gathered from all processes: all must call this, the main one gets them whole."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(model, FSDPModule):
        return model.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast("dict[str, Tensor]", get_model_state_dict(model, options=options))


def save_checkpoint(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    facts: dict,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write model, tokenizer, identifiers and facts as one folder, whole or not at all.

    weights: those of a `model` that lies in shards, see `whole_weights`; None for its own.
    LoRA is merged before: whoever loads the folder needs neither peft, nor the base model, nor the seed that the item
    tokens' rows began with. What the base model asks of `generate` (sampling, a repetition penalty, …) is left out:
    it is for chat, and would bend beam search over a catalogue.
    """
    from transformers import GenerationConfig

    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    model.config.use_cache = True  # the trainer has turned it off; a released decoder reads it
    model.generation_config = GenerationConfig(**{name: getattr(tokenizer, name) for name in special})
    with atomic_path(path) as partial:
        model.save_pretrained(partial, state_dict=weights)
        tokenizer.save_pretrained(partial)
        dataset.catalogue.save(partial / CATALOGUE)
        write_facts(partial, facts)


def open_checkpoint(path: str, stage: str, script: str, dataset: Dataset, grown: bool = False) -> Checkpoint:
    """Check that `path` is the output of `stage` for this very data set.

    grown: items may have joined the catalogue since, as by `build_index.sh --extend`, if the others' identifiers are
    what they were: to recommend them takes no training.
    Raises UserError if it is not there, unfinished, of another stage, or of another data set or catalogue.
    """
    facts = read_facts(Path(path), stage, script)
    setting = from_facts(path, facts, "setting", DataSetting)
    check_model_folder(Path(path))
    was = _as_it_was(Path(path), dataset) if grown else dataset
    check_same_data(path, setting, was)
    new = len(dataset.catalogue.identifiers) - len(was.catalogue.identifiers)
    if new:
        logger.info(f"{path}: {new} items of the catalogue are new since it was trained")
    return Checkpoint(path, setting, fingerprint(facts))


def _as_it_was(path: Path, dataset: Dataset) -> Dataset:
    """The data set without items that are newer than the checkpoint."""
    known = Catalogue.load(path / CATALOGUE).identifiers.keys()
    return replace(dataset, catalogue=dataset.catalogue.without(dataset.catalogue.identifiers.keys() - known))


def check_same_data(path: str, setting: DataSetting, dataset: Dataset) -> None:
    """Raises UserError if `path` was made for another catalogue or other splits than those of `dataset`."""
    now = asdict(DataSetting.of(dataset, setting.max_history, setting.cutoff))
    for what, name in (("catalogue", "identifier index"), ("splits", "splits")):
        if asdict(setting)[what] != now[what]:
            raise UserError(
                f"{path}: was made for {setting.dataset} with other {name} (fingerprint {asdict(setting)[what]}) than "
                f"those of {dataset.name} (fingerprint {now[what]}); set DATASET and DATA_PATH to its data, or make it "
                "again"
            )
