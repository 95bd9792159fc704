"""Resampled scores, and the quantities with intervals that are made of them."""
