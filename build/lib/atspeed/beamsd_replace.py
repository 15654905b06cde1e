"""Tree attention inside `model.generate`, under the name that BeamSD's users know."""

from beamsd import replace_beam_search_with_TreeAttn

__all__ = ["replace_beam_search_with_TreeAttn"]
