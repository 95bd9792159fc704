"""Round to nearest."""
from harness.quantize.grid import Grid, round_to_grid
__all__ = ["Grid", "round_to_grid"]
