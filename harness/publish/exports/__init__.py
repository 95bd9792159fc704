"""The board as files for other programs."""
