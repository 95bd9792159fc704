"""Puts this folder on the path of every test, so that rooms share ``logged_runs`` and ``quantized_files``."""
