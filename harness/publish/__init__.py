"""Stored cells to a ranked board and its pages. Never imports torch."""
