"""Paired tests between entries, in numbers and in sentences."""
