"""Limits of a worker process: files, network, and secrets in its output."""
