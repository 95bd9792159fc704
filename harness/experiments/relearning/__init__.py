"""Relearning: how fast an unlearned, quantized model has its text back when it is trained on other text."""
