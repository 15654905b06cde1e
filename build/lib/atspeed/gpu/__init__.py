"""What `gpu_check` checks of a GPU, with torch and transformers alone."""
