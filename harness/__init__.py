"""Quench, a benchmark: scores unlearned models under quantizers, stores each cell, publishes a board of them.

The folders are the way a submission travels: submit -> quantize -> score ->
store -> publish; ``run`` walks them there. A command is one function in a
module of ``harness/cli/``; docs/architecture.md follows one cell.
"""
