"""Logs of past evaluations, read and scored again with Quench's own formulas."""
