"""What is measured: formulas, names and directions of metrics, and metrics of plug-ins."""
