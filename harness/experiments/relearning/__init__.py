"""Relearning: how fast an unlearned, quantized model recovers its text when it is trained on other text."""
