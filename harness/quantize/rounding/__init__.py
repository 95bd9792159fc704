"""Quench's own rounding."""
