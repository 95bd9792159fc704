"""What a board of large models costs on GPUs: the arithmetic, step by step, from rates that were measured elsewhere."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from typing import Any

from harness.run.plan.cost_estimates import OPERATIONS

METRICS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """How large a board is and what its parts take; a job is one model under one quantizer on one corpus.

    Attributes:
        submissions: Entries, each scored on every corpus.
        quantizers: The 16-bit reference among them.
        corpora: Corpora.
        controls: Target and retrained model of each corpus, under every quantizer.
        parameters: Weights of a model.
        tokens: Tokens that one job's forward passes read, over its four cells.
        steps: Decoding steps of one job: new tokens of a row times batches of rows.
        tflops: TFLOP/s reached in forward passes.
        step_seconds: Seconds of one decoding step.
        quantize_seconds: Seconds of quantizing one model with its proof, mean over the quantizers.
        target_share: How often an entry's job quantizes its target as well, to measure survival; 0 where it is kept.
        loading_seconds: Seconds until a job's model lies on the card.
    """

    submissions: int = 50
    quantizers: int = 20
    corpora: int = 2
    controls: int = 2
    parameters: float = 6.74e9
    # MUSE NEWS as SmolLM2's tokenizer counts it, times 1.10: its texts are 2,048 of Llama's tokens and 1,857 of those.
    tokens: float = 1.10 * (557_087 + 92_267 + 11_491 + 5_688)
    # At most: VerbMem 128 in each of 9 batches, KnowMem, utility 32 in each of 3 (`harness/score/model/batching.py`).
    steps: int = 9 * 128 + 2 * 3 * 32
    tflops: float = OPERATIONS["cuda"] / 1e12
    step_seconds: float = 0.03
    quantize_seconds: float = 120.0
    target_share: float = 0.0
    loading_seconds: float = 30.0

    @property
    def jobs(self) -> int:
        """Jobs of entries and controls."""
        return (self.submissions + self.controls) * self.quantizers * self.corpora

    @property
    def petaflop(self) -> float:
        """Operations of one job's forward passes, in units of 10^15: two for each weight and token."""
        return 2 * self.parameters * self.tokens / 1e15

    @property
    def score_seconds(self) -> float:
        """Seconds of scoring in one job: passes over given text, and decoding."""
        return 1e3 * self.petaflop / self.tflops + self.steps * self.step_seconds

    @property
    def job_seconds(self) -> float:
        """Seconds of one job."""
        return self.loading_seconds + (1 + self.target_share) * self.quantize_seconds + self.score_seconds

    @property
    def gpu_hours(self) -> float:
        """Hours of one GPU for the whole board."""
        return self.jobs * self.job_seconds / 3600


def arithmetic(board: Board) -> list[tuple[str, str, str]]:
    """Returns (what, how, result) for each step from the board's size to GPU hours."""
    b = board
    passes = 1e3 * b.petaflop / b.tflops
    return [
        ("jobs", f"({b.submissions} entries + {b.controls} controls) x {b.quantizers} x {b.corpora}", f"{b.jobs:,}"),
        ("cells", f"{b.jobs:,} x {METRICS} metrics", f"{b.jobs * METRICS:,}"),
        ("operations of a job", f"2 x {b.parameters / 1e9:.2f}e9 x {b.tokens:,.0f} tokens", f"{b.petaflop:.1f} PFLOP"),
        ("passes over text", f"{b.petaflop:.1f} PFLOP / {b.tflops:g} TFLOP/s", f"{passes:.0f} s"),
        ("decoding", f"{b.steps:,} steps x {b.step_seconds:g} s", f"{b.steps * b.step_seconds:.0f} s"),
        ("quantizing", f"{b.quantize_seconds:g} s x {1 + b.target_share:g}",
         f"{(1 + b.target_share) * b.quantize_seconds:.0f} s"),
        ("a job", f"{b.loading_seconds:g} s to load, and the above", f"{b.job_seconds:.0f} s"),
        ("the board", f"{b.jobs:,} x {b.job_seconds:.0f} s / 3600", f"{b.gpu_hours:,.0f} GPU hours"),
    ]  # fmt: skip


def main() -> None:
    """Prints the arithmetic as a table; every number of it is an option."""
    parser = argparse.ArgumentParser(description=__doc__)
    for field in fields(Board):
        default: Any = field.default
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(default), default=default)
    board = Board(**vars(parser.parse_args()))
    print("| what | how | result |\n|---|---|---|")
    for row in arithmetic(board):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
