"""Scoring one model on one task: definitions, corpora, lm-eval tasks, evaluation."""
