"""SpecGR: a drafter that knows new items proposes, a generative recommender verifies (AAAI 2026)."""
