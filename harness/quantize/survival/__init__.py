"""How much of an unlearning update survives quantization."""
