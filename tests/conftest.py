"""Puts this folder on the path of every test, so that rooms share the synthetic logs of ``logged_runs``."""
