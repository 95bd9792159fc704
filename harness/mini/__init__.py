"""The embedded miniature: a generated corpus and small models trained on it."""
