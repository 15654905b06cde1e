"""Semantic identifiers from item texts or vectors."""
