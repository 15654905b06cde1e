"""The trainings in order; each writes weights and facts."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genrec.runtime.artefacts import FACTS, NOTE, already_done, fingerprint, new_folder, other_arguments, read_facts
from genrec.runtime.errors import UserError
from genrec.runtime.text import read_json
from specgr.configuration.config import Config, TrainingPlan, UniSRecShape, flat
from specgr.configuration.plans import OF_TEXTS, STAGES, check_division, over_processes, plan_key, plan_of, stage_folder
from specgr.data.codes import Codes
from specgr.data.examples import Data
from specgr.decoding.item_drafters import Drafted, EncoderDrafter, Histories, UniSRecDrafter, item_embeddings
from specgr.decoding.prefixes import Prefixes
from specgr.decoding.ranked_lists import ItemRanker
from specgr.decoding.specgr_search import SpecGR
from specgr.decoding.tiger_search import BeamSearch
from specgr.decoding.verifier import TigerVerifier
from specgr.networks.tiger import Tiger, TigerSettings
from specgr.networks.unisrec import UniSRec, UniSRecSettings
from specgr.training.fitting import fit_weights
from specgr.training.loss_modules import LossModule, Stage1Loss, Stage2Loss, TigerLoss, UniSRecLoss

logger = logging.getLogger(__name__)

MODEL, ITEMS = "model", "items.safetensors"


@dataclass(frozen=True)
class Workspace:
    """Configuration, data and device that all trainings share."""

    config: Config
    data: Data
    texts: Tensor | None  # (n_items, d), on the device
    accelerator: Accelerator

    @property
    def codes(self) -> Codes:
        return self.data.codes.to(self.accelerator.device)

    @property
    def seen(self) -> Tensor:
        return self.data.seen.to(self.accelerator.device)

    @property
    def texts_fingerprint(self) -> str:
        """Identifies the text embeddings of the items in training; there are some."""
        return hashlib.sha256(self.texts[self.seen].cpu().numpy().tobytes()).hexdigest()[:16]

    def folder(self, stage: str) -> Path:
        return stage_folder(self.config, stage)

    def new_tiger(self) -> Tiger:
        codes = self.data.codes
        return Tiger(TigerSettings(codes.vocabulary_size, codes.levels, **asdict(self.config.tiger)))


@dataclass(frozen=True)
class Stage:
    """One training."""

    name: str
    plan: TrainingPlan
    facts: dict[str, object]  # what the result follows from, besides data, seed, plan and validation
    objective: Callable[[], LossModule]  # made after seeding
    recommender: Callable[[LossModule], ItemRanker]  # of the present weights, to validate
    items: Callable[[LossModule], Tensor] | None = None  # item embeddings (n_items, p) to keep beside the weights


def train(bench: Workspace, names: tuple[str, ...], overwrite: bool) -> None:
    """Train these of STAGES, in their order. Raises UserError before any work that cannot be done."""
    for split in ("train", "valid"):
        if not len(getattr(bench.data, split)):
            raise UserError(f"{bench.config.dataset}: no sample of {split} has a history, so there is nothing to learn")
    before = {"stage1": ("tiger",) if bench.config.stage1.from_tiger else (), "stage2": ("stage1",)}
    for name in names:
        processes = bench.accelerator.num_processes
        check_division(over_processes(plan_of(bench.config, name), processes), plan_key(name), processes)
        if name in OF_TEXTS and bench.texts is None:
            raise UserError(
                f"embeddings is not set; {name} needs text embeddings: --embeddings FILE.npy, or leave it out"
            )
        for needed in before.get(name, ()):
            if needed not in names:
                open_stage(bench, needed)
    make = {"tiger": _tiger, "unisrec": _unisrec, "sasrec_t": _sasrec_t, "stage1": _stage1, "stage2": _stage2}
    for name in STAGES:
        if name in names:
            _train(bench, make[name](bench), overwrite)


def _train(bench: Workspace, stage: Stage, overwrite: bool) -> None:
    config, accelerator, output = bench.config, bench.accelerator, bench.folder(stage.name)
    plan = over_processes(stage.plan, accelerator.num_processes)
    arguments = {
        "dataset": config.dataset, "data": bench.data.trained_fingerprint, "bos_eos": config.bos_eos,
        "seed": config.seed, **stage.facts,
        **flat(plan, plan_key(stage.name)), **flat(config.validation, "validation"),
    }  # fmt: skip
    del arguments["validation.batch_size"]  # a matter of memory
    work = output.with_name(output.name + ".work")
    with accelerator.main_process_first():
        if already_done(output, work, stage.name, arguments, overwrite and _made_otherwise(output, work, arguments)):
            return
    torch.manual_seed(config.seed)
    objective = stage.objective()
    logger.info(f"{stage.name}: {sum(weight.numel() for weight in objective.model.parameters()):,} weights")
    examples = bench.data.valid.sample(config.validation.samples, config.seed)

    def validate() -> float:
        return validation_ndcg(
            stage.recommender(objective), examples, config.validation.k, config.validation.batch_size, accelerator
        )

    state = fit_weights(objective, plan, config.seed, work, accelerator, validate)
    if accelerator.is_main_process:
        results = {
            f"NDCG@{config.validation.k}": state.best, "best_step": state.best_step, "history": state.history,
        }  # fmt: skip
        with new_folder(output, stage.name, arguments, work, results=results) as partial:
            objective.model.save(partial / MODEL)
            if stage.items:
                save_items(stage.items(objective), bench.data.codes, partial / ITEMS)
        logger.info(f"{output}: validation NDCG@{config.validation.k} {state.best:.4f} at step {state.best_step}")
    accelerator.wait_for_everyone()


def _made_otherwise(output: Path, work: Path, arguments: dict) -> bool:
    """Whether a training that is there, done or begun, had other arguments. One that had the same is never removed."""
    made = [read_json(output / FACTS)["arguments"]] if (output / FACTS).is_file() else []
    begun = [read_json(work / NOTE)] if (work / NOTE).is_file() else []
    return any(any(other_arguments(one, arguments)) for one in made + begun)


@torch.inference_mode()
def validation_ndcg(recommender: ItemRanker, examples, k: int, batch_size: int, accelerator: Accelerator) -> float:
    """NDCG@k of lists for one target each, shared by the processes; the same number on all."""
    gain = torch.zeros((), device=accelerator.device)
    for start in range(accelerator.process_index * batch_size, len(examples), accelerator.num_processes * batch_size):
        batch = examples[slice(start, start + batch_size)]
        items = recommender.recommend(batch.histories.to(gain.device), k).items.cpu()
        discount = 1 / torch.arange(2, items.shape[1] + 2).log2()
        gain += ((items == batch.targets[:, None]) * discount).sum().to(gain.device)
    return accelerator.reduce(gain, "sum").item() / len(examples)


def _tiger(bench: Workspace) -> Stage:
    codes, prefixes = bench.codes, Prefixes.of(bench.codes)
    return Stage(
        "tiger", bench.config.train_tiger, flat(bench.config.tiger, "tiger"),
        lambda: TigerLoss(bench.new_tiger(), codes, bench.data.train),
        lambda objective: BeamSearch(TigerVerifier(objective.model, codes), prefixes, constrained=True),
    )  # fmt: skip


def _unisrec(bench: Workspace) -> Stage:
    return _of_texts(bench, "unisrec", bench.config.unisrec)


def _sasrec_t(bench: Workspace) -> Stage:
    return _of_texts(bench, "sasrec_t", bench.config.sasrec_t)


def _of_texts(bench: Workspace, name: str, shape: UniSRecShape) -> Stage:
    config, texts = bench.config, bench.texts
    facts = {"embeddings": bench.texts_fingerprint}
    settings = UniSRecSettings(texts.shape[1], config.max_history, **asdict(shape))
    return Stage(
        name, plan_of(config, name), facts | flat(shape, name),
        lambda: UniSRecLoss(UniSRec(settings), texts, bench.seen, bench.data.train),
        lambda objective: Drafted(Histories(), UniSRecDrafter.of(objective.model, texts)),
    )  # fmt: skip


def _stage1(bench: Workspace) -> Stage:
    config, codes, prefixes, seen = bench.config, bench.codes, Prefixes.of(bench.codes), bench.seen
    start = fingerprint(_same_shape(bench, "tiger")) if config.stage1.from_tiger else None

    def objective() -> Stage1Loss:
        tiger = load_tiger(bench, "tiger") if start else bench.new_tiger()
        return Stage1Loss(tiger, codes, bench.data.train, config.stage1)

    def recommender(objective: LossModule) -> SpecGR:
        return _plus_plus(objective.model, codes, item_embeddings(objective.model, codes), prefixes, seen, config)

    facts = flat(config.tiger, "tiger") | {"tiger": start} | flat(config.plus, "plus")
    return Stage("stage1", config.stage1, facts, objective, recommender, lambda o: item_embeddings(o.model, codes))


def _stage2(bench: Workspace) -> Stage:
    config, codes, prefixes, seen = bench.config, bench.codes, Prefixes.of(bench.codes), bench.seen
    facts = {"stage1": fingerprint(_same_shape(bench, "stage1"))} | flat(config.plus, "plus")
    items = load_items(bench, "stage1")

    def objective() -> Stage2Loss:
        return Stage2Loss(load_tiger(bench, "stage1"), codes, bench.data.train, config.stage2, items, seen)

    def recommender(objective: LossModule) -> SpecGR:
        return _plus_plus(objective.model, codes, items, prefixes, seen, config)

    return Stage("stage2", config.stage2, facts, objective, recommender, lambda _: items)


def _plus_plus(tiger: Tiger, codes: Codes, items: Tensor, prefixes: Prefixes, seen: Tensor, config: Config) -> SpecGR:
    return SpecGR(TigerVerifier(tiger, codes), EncoderDrafter(tiger, items), prefixes, seen, config.plus)


def open_stage(bench: Workspace, name: str) -> dict:
    """The facts of a trained stage. Raises UserError if it is not there, or was trained on other data."""
    facts = read_facts(bench.folder(name), name, "specgr_train")
    if facts["arguments"]["data"] != bench.data.trained_fingerprint:
        raise UserError(
            f"{bench.folder(name)}: was trained on other data or identifiers than these of {bench.config.dataset}; "
            "train it again with --overwrite, or choose another output_dir"
        )
    if name in OF_TEXTS and facts["arguments"]["embeddings"] != bench.texts_fingerprint:
        raise UserError(
            f"{bench.folder(name)}: was trained on other text embeddings than {bench.config.embeddings}; pass those "
            f"with --embeddings, or train it again with --stages {name} --overwrite"
        )
    return facts


def _same_shape(bench: Workspace, name: str) -> dict:
    """`open_stage` of one whose weights are trained on. Raises UserError if the configuration wants another TIGER."""
    facts = open_stage(bench, name)
    for key, value in flat(bench.config.tiger, "tiger").items():
        made = facts["arguments"][key]
        if made != value:
            raise UserError(
                f"{bench.folder(name)}: was trained with --{key} {made}, not {value}, and the next stage starts from "
                f"it; pass --{key} {made}, or train {name} again with --overwrite"
            )
    return facts


def load_tiger(bench: Workspace, name: str) -> Tiger:
    """The TIGER that a stage left, on the device, ready to evaluate."""
    return Tiger.load(bench.folder(name) / MODEL).to(bench.accelerator.device)


def save_items(items: Tensor, codes: Codes, path: Path) -> None:
    """Write the embeddings (n_items, p) of items, and which identifiers they are of."""
    save_file({"items": items.cpu().contiguous(), "codes": codes.codes}, path)


def load_items(bench: Workspace, name: str) -> Tensor:
    """The item embeddings (n_items, p) that a stage of SpecGR++ left. An item that has joined the index since, or has
    another identifier than then, is embedded as stage 1 would have. Raises UserError if they are damaged."""
    path = bench.folder(name) / ITEMS
    try:
        kept = load_file(path)
        items, then = kept["items"].to(bench.accelerator.device), kept["codes"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path}: no item embeddings ({error}); train {name} again") from error
    now = bench.data.codes.codes
    n = min(len(now), len(then))
    same = (now[:n] == then[:n]).all(1).nonzero()[:, 0].to(items.device)
    if len(same) == len(now):
        return items[:n]
    return item_embeddings(load_tiger(bench, "stage1"), bench.codes).index_copy(0, same, items[same])
