"""Ranking metrics and baseline recommenders."""
