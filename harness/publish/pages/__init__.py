"""The static site: one module per page, built from a store."""
