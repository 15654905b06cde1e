"""Data sets: splits, catalogue and samples."""
