"""What this package adds to Quench stands in its modules; nothing is imported before it is needed."""
