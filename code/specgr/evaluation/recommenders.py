"""Makes the recommenders that are compared from the trained models."""

from specgr.configuration.names import (
    AUX,
    CONSTRAINED,
    DECAY,
    ENCODER,
    NEEDS,
    NEIGHBOURS,
    PLAIN,
    SASREC_T,
    SPECGR_NEIGHBOURS,
    UNISREC,
)
from specgr.configuration.plans import settings_of
from specgr.configuration.specgr_settings import SpecGRSettings
from specgr.decoding.item_drafters import Drafted, EncoderDrafter, Histories, ItemDrafter, UniSRecDrafter
from specgr.decoding.neighbours import CodeNeighbourDrafter, NeighbourDrafter
from specgr.decoding.prefixes import Prefixes
from specgr.decoding.ranked_lists import ItemRanker
from specgr.decoding.specgr_search import SpecGR
from specgr.decoding.tiger_search import BeamSearch
from specgr.decoding.verifier import TigerVerifier
from specgr.networks.unisrec import UniSRec
from specgr.training.stages import MODEL, Workspace, load_items, load_tiger


def make(bench: Workspace, name: str, settings: SpecGRSettings | None = None) -> ItemRanker:
    """One of NEEDS, on the device. settings: of one that is SPECULATIVE; None: the configuration's."""
    codes = bench.codes
    if name in DECAY:
        return Drafted(Histories(), _neighbours(bench, DECAY[name]))
    if name in (UNISREC, SASREC_T):
        return Drafted(Histories(), _of_texts(bench, *NEEDS[name]))
    tiger = NEEDS[name][0]  # itself, or what a stage of SpecGR++ made of it
    verifier = TigerVerifier(load_tiger(bench, tiger), codes)
    if name in (PLAIN, CONSTRAINED):
        return BeamSearch(verifier, Prefixes.of(codes), constrained=name == CONSTRAINED)
    drafter: ItemDrafter
    if name == AUX:
        drafter = _of_texts(bench, "unisrec")
    elif name == SPECGR_NEIGHBOURS:
        drafter = _neighbours(bench, DECAY[NEIGHBOURS])
    else:
        drafter = EncoderDrafter(verifier.tiger, load_items(bench, tiger))
    if name == ENCODER:
        return Drafted(verifier, drafter)
    return SpecGR(verifier, drafter, Prefixes.of(codes), bench.seen, settings or settings_of(bench.config, name))


def _neighbours(bench: Workspace, decay: float) -> ItemDrafter:
    """Of the texts where there are any, else of the identifiers."""
    return CodeNeighbourDrafter(bench.codes, decay) if bench.texts is None else NeighbourDrafter(bench.texts, decay)


def _of_texts(bench: Workspace, stage: str) -> UniSRecDrafter:
    model = UniSRec.load(bench.folder(stage) / MODEL).to(bench.accelerator.device)
    return UniSRecDrafter.of(model, bench.texts)
