"""What a survival ratio says of the verdict before anything is scored."""

from __future__ import annotations

import math

INTERCEPT, SLOPE = 6.73, 13.18
"""Of log-odds = INTERCEPT - SLOPE * ratio, fitted by benchmarks/survival_prediction.py on the miniature's grid."""


def chance_of_return(survival_ratio: float | None) -> float | None:
    """Returns the likelihood that quantization brings VerbMem back (verdict ``reverts``), 0 to 1.

    Fitted on the miniature's 128 cells of entries that had forgotten, half of
    them at 4 bits: it knows one architecture of a million parameters and one
    corpus, and takes the entry to have forgotten at 16 bit.

    Args:
        survival_ratio: Over all layers; taken as 0 below 0 and as 1 above 1,
            where the update is there with noise on top.

    Returns:
        None where there is no ratio: the update is negligible.
    """
    if survival_ratio is None:
        return None
    return 1.0 / (1.0 + math.exp(SLOPE * min(max(survival_ratio, 0.0), 1.0) - INTERCEPT))
