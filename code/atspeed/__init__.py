"""The AtSpeed method: prompts, teacher data, losses, draft training, evaluation."""
