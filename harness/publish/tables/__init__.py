"""The board as flat rows, and rows as text."""
