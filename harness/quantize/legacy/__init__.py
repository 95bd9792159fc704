"""AutoGPTQ and AutoAWQ in Python environments of their own."""
