"""BeamSD: exact, batched speculative beam search over a trie of legal sequences."""

from beamsd.clock import Clock
from beamsd.search import Result, beam_search, rounds
from beamsd.tree import Tree
from beamsd.trie import Trie

__all__ = ["Clock", "Result", "Tree", "Trie", "beam_search", "rounds"]
