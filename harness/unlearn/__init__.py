"""Unlearning: losses, recipes and the trainer that made the demo submissions."""
