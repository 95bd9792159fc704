"""Whole experiments, each one command: a paper repeated, relearning measured."""
