"""The results: cell_files.py writes a JSON record per cell, store.py the DuckDB file that commands read."""
