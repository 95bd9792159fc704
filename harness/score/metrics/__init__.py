"""Metrics: formulas, names and directions, and those of plug-ins."""
