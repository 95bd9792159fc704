"""Models in memory: whole, or one transformer block at a time."""
