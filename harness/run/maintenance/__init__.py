"""Repairs of a store and its folders, and the cache."""
