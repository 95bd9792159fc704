"""Corpora: the catalogue, their texts and facts, and the check of a new one."""
