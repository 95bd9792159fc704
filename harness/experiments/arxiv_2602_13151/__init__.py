"""A paper's experiment as one command: its models made, scored, and set beside its figures."""
