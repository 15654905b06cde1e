"""BeamSD: exact, batched speculative beam search for decoder-only models of transformers."""

from beamsd.auto import Auto
from beamsd.clock import Clock
from beamsd.generation import (
    SpeculativeOutput,
    beam_search_by_SD,
    beam_search_by_SD_4timing,
    beam_search_by_TreeAttn,
    replace_beam_search_with_TreeAttn,
    speculate,
)
from beamsd.prefix import Prefix
from beamsd.program import Program
from beamsd.search import Result, Round, beam_search, rounds
from beamsd.settings import Settings
from beamsd.tree import Tree
from beamsd.trie import Trie

__all__ = [
    "Auto",
    "Clock",
    "Prefix",
    "Program",
    "Result",
    "Round",
    "Settings",
    "SpeculativeOutput",
    "Tree",
    "Trie",
    "beam_search",
    "beam_search_by_SD",
    "beam_search_by_SD_4timing",
    "beam_search_by_TreeAttn",
    "replace_beam_search_with_TreeAttn",
    "rounds",
    "speculate",
]
