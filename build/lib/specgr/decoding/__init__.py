"""SpecGR: drafters that score items, verification by TIGER, and TIGER's own beam search."""
