"""The recommenders that are compared, and their quality by kind of target."""
