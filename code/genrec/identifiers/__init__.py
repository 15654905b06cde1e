"""From item texts or vectors to semantic identifiers."""
