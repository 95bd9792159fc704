"""Which cells to score, with which calibration texts and reference values, and how long it takes."""
