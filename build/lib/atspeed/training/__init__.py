"""Training of target and draft: losses, data policy, trainer, model selection."""
