"""TIGER and UniSRec."""
