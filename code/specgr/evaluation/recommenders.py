"""Makes the recommenders that are compared from the trained models."""

from specgr.configuration.names import (
    AUX,
    CONSTRAINED,
    DECAY,
    ENCODER,
    NEIGHBOURS,
    PLAIN,
    PLUS,
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
    if name == UNISREC or name in DECAY:
        return Drafted(Histories(), _unisrec(bench) if name == UNISREC else _neighbours(bench, DECAY[name]))
    verifier = TigerVerifier(load_tiger(bench, "stage2" if name in (ENCODER, PLUS) else "tiger"), codes)
    if name in (PLAIN, CONSTRAINED):
        return BeamSearch(verifier, Prefixes.of(codes), constrained=name == CONSTRAINED)
    drafter: ItemDrafter
    if name == AUX:
        drafter = _unisrec(bench)
    elif name == SPECGR_NEIGHBOURS:
        drafter = _neighbours(bench, DECAY[NEIGHBOURS])
    else:
        drafter = EncoderDrafter(verifier.tiger, load_items(bench, "stage2"))
    if name == ENCODER:
        return Drafted(verifier, drafter)
    return SpecGR(verifier, drafter, Prefixes.of(codes), bench.seen, settings or settings_of(bench.config, name))


def _neighbours(bench: Workspace, decay: float) -> ItemDrafter:
    """Of the texts where there are any, else of the identifiers."""
    return CodeNeighbourDrafter(bench.codes, decay) if bench.texts is None else NeighbourDrafter(bench.texts, decay)


def _unisrec(bench: Workspace) -> UniSRecDrafter:
    model = UniSRec.load(bench.folder("unisrec") / MODEL).to(bench.accelerator.device)
    return UniSRecDrafter.of(model, bench.texts)
