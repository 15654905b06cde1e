"""Recommendations: from histories of items to lists of items."""
