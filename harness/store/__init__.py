"""Every outcome kept: one JSON record per cell, and a DuckDB store with one transaction per cell."""
