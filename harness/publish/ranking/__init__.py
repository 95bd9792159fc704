"""From stored cells to verdicts, worst cases and ranks."""
