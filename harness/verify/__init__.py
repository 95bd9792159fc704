"""An independent check of stored cells: a few documents scored again by plain means.

peft merges, the quantizer's own library dequantizes, the bare tokenizer file makes the tokens, transformers runs one
text at a time, rouge-score compares words. Nothing is shared with ``submit.checkpoint.merge_adapter``, ``quantize`` or
``score``: a test walks the imports. A fault there shows here as a difference.
"""
