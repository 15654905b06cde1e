"""Processing of raw interaction files into splits."""
