"""The backends: one module each, with an object ``BACKEND``."""
