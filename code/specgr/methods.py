"""The recommenders that are compared, from what the trainings left."""

from specgr.beams import Prefixes
from specgr.decoding import SpecGR
from specgr.drafters import Drafted, Drafter, EncoderDrafter
from specgr.lists import Recommender
from specgr.names import (
    AUX,
    CONSTRAINED,
    ENCODER,
    NEIGHBOURS,
    PLAIN,
    PLUS,
    SPECGR_NEIGHBOURS,
    UNISREC,
)
from specgr.neighbours import NeighbourDrafter, code_vectors
from specgr.plans import settings_of
from specgr.search import BeamSearch
from specgr.settings import SpecGRSettings
from specgr.stages import MODEL, Bench, load_items, load_tiger
from specgr.unisrec import Histories, UniSRec, UniSRecDrafter
from specgr.verify import TigerVerifier


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
    return SpecGR(verifier, drafter, Prefixes.of(codes), bench.seen, settings or settings_of(bench.config, name))


def _neighbours(bench: Bench) -> NeighbourDrafter:
    """Of the texts where there are any, else of the identifiers."""
    return NeighbourDrafter(code_vectors(bench.codes) if bench.texts is None else bench.texts)


def _unisrec(bench: Bench) -> UniSRecDrafter:
    model = UniSRec.load(bench.folder("unisrec") / MODEL).to(bench.accelerator.device)
    return UniSRecDrafter.of(model, bench.texts)
