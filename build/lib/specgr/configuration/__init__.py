"""The YAML configuration, and what follows from it before torch is imported."""
