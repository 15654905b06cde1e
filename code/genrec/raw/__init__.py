"""From raw interaction files to splits."""
