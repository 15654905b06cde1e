"""Samples, and items as sequences of codes."""
