"""BeamSD: exact, batched speculative beam search for decoder-only models of transformers.

The public names are imported on first use, so that `import beamsd` takes no time and `Trie` needs torch alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from beamsd.generation import (
        SpeculativeOutput,
        beam_search_by_SD,
        beam_search_by_SD_4timing,
        beam_search_by_TreeAttn,
        replace_beam_search_with_TreeAttn,
        speculate,
    )
    from beamsd.models.prefix import Prefix
    from beamsd.search.beam_search import Result, beam_search, rounds
    from beamsd.search.scoring import Trace
    from beamsd.search.settings import Settings
    from beamsd.search.state import Round
    from beamsd.speed.auto import Auto
    from beamsd.speed.clock import Clock
    from beamsd.speed.program import Program
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
    "Trace",
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

_MODULE_OF = {
    "Auto": "speed.auto", "Clock": "speed.clock", "Prefix": "models.prefix", "Program": "speed.program",
    "Result": "search.beam_search", "Round": "search.state", "Settings": "search.settings",
    "SpeculativeOutput": "generation", "Trace": "search.scoring", "Tree": "tree", "Trie": "trie",
    "beam_search": "search.beam_search",
    "beam_search_by_SD": "generation", "beam_search_by_SD_4timing": "generation",
    "beam_search_by_TreeAttn": "generation", "replace_beam_search_with_TreeAttn": "generation",
    "rounds": "search.beam_search", "speculate": "generation",
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
