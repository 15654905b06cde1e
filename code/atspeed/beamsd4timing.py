"""Speculative beam search that says where its time goes, under the name that BeamSD's users know."""

from beamsd import Clock, beam_search_by_SD_4timing

__all__ = ["Clock", "beam_search_by_SD_4timing"]
