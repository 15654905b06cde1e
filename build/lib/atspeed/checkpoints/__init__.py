"""Models on disk: loading them, the folders that stages leave, LoRA, sizes by name."""
