"""Quench: does unlearning survive quantization?

The folders are the way a submission travels: submit -> quantize -> score ->
store -> publish; ``run`` walks them there. Start reading at ``cli.py``.
"""
