"""The miniature's tokenizer: byte-level BPE in which a space ends a word.

MUSE's KnowMem prompt ends in ``Answer: `` with the space. Where spaces begin
words (GPT-2), that last space is a token of its own that training never
showed; here ``: `` is one token and the answer starts as it does in training.
Digits stand alone and a blank line is one token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

VOCABULARY = 1024
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
PIECES = r"[A-Za-z]+ ?|\d|\n+|[^A-Za-z\d\n] ?"
"""What may become one token at most: a word with its space, a digit, line ends, a sign with its space."""


def train_tokenizer(texts: Iterable[str]) -> Any:
    """Returns a transformers tokenizer trained on ``texts``; ids 0 to 2 are pad, BOS and EOS.

    BOS is put before every text and padding goes to the left. Train it on all
    splits, the holdout included: a vocabulary that knows the members only
    would give them away.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
