"""The recommenders that are compared, from what the trainings left."""

from dataclasses import replace

from genrec.errors import UserError
from specgr.beams import Prefixes
from specgr.decoding import SpecGR
from specgr.drafters import Drafted, Drafter, EncoderDrafter
from specgr.lists import Recommender
from specgr.names import (
    AUX,
    CONSTRAINED,
    ENCODER,
    NEEDS,
    NEIGHBOURS,
    PLAIN,
    PLUS,
    SPECGR_NEIGHBOURS,
    UNISREC,
    check_methods,
)
from specgr.neighbours import NeighbourDrafter, code_vectors
from specgr.plans import STAGES
from specgr.search import BeamSearch
from specgr.settings import SpecGRSettings
from specgr.stages import MODEL, Bench, load_items, load_tiger, open_stage
from specgr.unisrec import Histories, UniSRec, UniSRecDrafter
from specgr.verify import TigerVerifier


def choose(bench: Bench, names: tuple[str, ...]) -> tuple[str, ...]:
    """These methods, or, for none, all that the configuration has the data for; their trainings are there.

    Raises UserError for a method that does not exist, or whose training is missing or of other data.
    """
    chosen = names or tuple(name for name in NEEDS if "unisrec" not in NEEDS[name] or bench.texts is not None)
    for stage in stages_of(bench, chosen):
        open_stage(bench, stage)
    return chosen


def stages_of(bench: Bench, names: tuple[str, ...]) -> list[str]:
    """The trainings that these methods need. Raises UserError for a method that does not exist or lacks its data."""
    check_methods(names)
    stages = [stage for stage in STAGES if any(stage in NEEDS[name] for name in names)]
    if bench.texts is None and "unisrec" in stages:
        raise UserError("embeddings is not set; UniSRec and SpecGR_Aux read them: --embeddings FILE.npy")
    return stages


def settings_of(bench: Bench, name: str, **changes: float | None) -> SpecGRSettings:
    """What SpecGR_Aux or SpecGR++ is run with: the configuration's, but for the changes that are not None."""
    section = {SPECGR_NEIGHBOURS: bench.config.neighbours, AUX: bench.config.aux, PLUS: bench.config.plus}[name]
    try:
        return replace(section, **{key: value for key, value in changes.items() if value is not None})
    except ValueError as error:
        raise UserError(f"--{error}") from error


def describe(settings: dict[str, SpecGRSettings]) -> str:
    """For a headline, after what else it says. settings: by method."""
    return "".join(f"; {name} δ {s.draft_size}, γ {s.threshold:g}, β {s.num_beams}" for name, s in settings.items())


def make(bench: Bench, name: str, settings: SpecGRSettings | None = None) -> Recommender:
    """One of NEEDS, on the device. settings: of one that is SPECULATIVE; None: the configuration's."""
    codes = bench.codes
    if name in (UNISREC, NEIGHBOURS):
        return Drafted(Histories(), _unisrec(bench) if name == UNISREC else _neighbours(bench))
    verifier = TigerVerifier(load_tiger(bench, "stage2" if name in (ENCODER, PLUS) else "tiger"), codes)
    if name in (PLAIN, CONSTRAINED):
        return BeamSearch(verifier, Prefixes.of(codes), constrained=name == CONSTRAINED)
    drafter: Drafter
    if name == AUX:
        drafter = _unisrec(bench)
    elif name == SPECGR_NEIGHBOURS:
        drafter = _neighbours(bench)
    else:
        drafter = EncoderDrafter(verifier.tiger, load_items(bench, "stage2"))
    if name == ENCODER:
        return Drafted(verifier, drafter)
    return SpecGR(verifier, drafter, Prefixes.of(codes), bench.seen, settings or settings_of(bench, name))


def _neighbours(bench: Bench) -> NeighbourDrafter:
    """Of the texts where there are any, else of the identifiers."""
    return NeighbourDrafter(code_vectors(bench.codes) if bench.texts is None else bench.texts)


def _unisrec(bench: Bench) -> UniSRecDrafter:
    model = UniSRec.load(bench.folder("unisrec") / MODEL).to(bench.accelerator.device)
    return UniSRecDrafter.of(model, bench.texts)
