"""What a user names: one module per backend, each with an object ``BACKEND``."""
