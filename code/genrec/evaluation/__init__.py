"""Metrics, and the baselines that a recommender is judged beside."""
