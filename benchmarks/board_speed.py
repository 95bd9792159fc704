"""How long a board of many cells takes: every interval, paired change, verdict and rank, on one core.

The board is made up: entries, two targets and a retrained model under ten
quantizers, with as many documents as MUSE has. Only ``ranking.rank`` is
timed; reading a store takes its own time (docs/performance.md). The digest is
over everything that was computed: the same seed must give the same bytes.

Usage: ``python -m benchmarks.board_speed [--cells 10000] [--rounds 3]``.
"""

from __future__ import annotations

import os

# Before numpy is imported: one core means one core.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import hashlib
import resource
import time

import numpy as np

from harness.publish.board import Board
from harness.publish.ranking import rank as ranking
from harness.records import Cell, CellResult, DocumentRecord, Provenance, QuantizerSpec, Score, Submission
from harness.score.metrics.formulas import PRIMARY, auc, privleak

DOCUMENTS = 100
REFERENCE_AUC = 0.4772
BITS = {"reference": 16, "a-8": 8, "b-8": 8, "a-4": 4, "b-4": 4, "c-4": 4, "a-3": 3, "b-3": 3, "a-2": 2, "b-2": 2}
SPLITS = {"verbmem_f": ("forget",), "knowmem_f": ("forget_qa",), "knowmem_r": ("retain_qa",),
          "privleak": ("forget", "holdout")}  # fmt: skip


def submissions(count: int) -> list[Submission]:
    roles = ["target", "target", "retrain", *["entry"] * (count - 3)]
    return [
        Submission(
            name=f"{role}-{number:04d}", title=f"{role} {number}", method="made up", corpus="made-up",
            kind="full_model", role=role, target="target-0000" if role == "entry" else None,  # type: ignore[arg-type]
            retrain="retrain-0002" if role == "entry" else None, base_model=None, base_revision=None, weights="w",
            revision=None, weights_sha256=None, folder="f",
        )
        for number, role in enumerate(roles)
    ]  # fmt: skip


def cells(count: int, seed: int = 0) -> list[CellResult]:
    """Returns a board of ``count`` cells: submissions x ten quantizers x four metrics."""
    rng = np.random.default_rng(seed)
    levels = {"target": (4.0, 2.0, 1.5, 2.0), "retrain": (-1.5, -3.0, 1.3, 0.0), "entry": (-1.0, -1.5, 1.2, 0.8)}
    difficulty = {(metric, split): rng.normal(size=DOCUMENTS) for metric in PRIMARY for split in SPLITS[metric]}
    made = []
    for submission in submissions(count // (len(BITS) * len(PRIMARY))):
        own = rng.normal(0, 0.5)
        for name, bits in BITS.items():
            spec = QuantizerSpec(name=name, backend="none", bits=bits, group_size=64, symmetric=None, label=name)
            back = rng.uniform(0, 2) if submission.role == "entry" and bits < 16 else 0.0
            for place, metric in enumerate(PRIMARY):
                level = levels[submission.role][place] + own + back
                drawn = {
                    split: level * (split != "holdout") + difficulty[metric, split] + rng.normal(0, 0.6, DOCUMENTS)
                    for split in SPLITS[metric]
                }
                made.append(_cell(submission, spec, metric, drawn, len(made)))
    return made


def _cell(
    submission: Submission, spec: QuantizerSpec, metric: str, drawn: dict[str, np.ndarray], number: int
) -> CellResult:  # fmt: skip
    key = "min_k_40" if metric == "privleak" else metric
    if metric != "privleak":
        drawn = {split: 1 / (1 + np.exp(-values)) for split, values in drawn.items()}
    documents = tuple(
        DocumentRecord(
            index=index * len(drawn) + side, split=split, prompt_sha256=f"{metric}/{split}/{index}", prompt_excerpt="",
            response="", reference_sha256=None, reference_excerpt="", scores={key: value},
        )
        for side, (split, values) in enumerate(drawn.items())
        for index, value in enumerate(values.tolist())
    )  # fmt: skip
    return CellResult(
        cell=Cell(submission=submission.name, quantizer=spec.name, task=f"muse_made_up_{metric}", key=f"{number:064d}"),
        submission=submission, spec=spec, corpus="made-up", status="finished",
        provenance=Provenance(created_at="2026-11-01T00:00:00+00:00", versions={}, git_commit="a" * 40, dirty=False,
                              device="cpu", threads=1, seed=0, scoring_version=1),
        scores=_scores(metric, drawn), documents=documents,
    )  # fmt: skip


def _scores(metric: str, drawn: dict[str, np.ndarray]) -> tuple[Score, ...]:
    if metric != "privleak":
        return (Score(metric=metric, value=float(next(iter(drawn.values())).mean()), num_docs=DOCUMENTS),)
    found = auc(drawn["forget"], drawn["holdout"])
    return (
        Score(metric="privleak", value=privleak(found, REFERENCE_AUC), num_docs=2 * DOCUMENTS),
        Score(metric="auc", value=found, num_docs=2 * DOCUMENTS),
        Score(metric="reference_auc", value=REFERENCE_AUC, num_docs=2 * DOCUMENTS),
    )


def digest(board: Board) -> str:
    """Returns the SHA-256 over every interval, verdict, tier and rank of a board."""
    computed = hashlib.sha256()
    for row in (*board.rows, *board.controls):
        shown = {name: (result.verdict, dict(result.metrics)) for name, result in row.by_quantizer.items()}
        computed.update(repr((row.submission.name, shown, row.by_bits, row.durable_bits)).encode())
    return computed.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    made = cells(asked.cells)
    print(f"{len(made)} cells, {sum(len(cell.documents) for cell in made):,} documents")
    digests = set()
    for number in range(asked.rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        board = ranking.rank(made, "made-up")
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        digests.add(digest(board))
        ranked = len(board.ranked(4))
        print(
            f"round {number + 1}: {wall:.2f} s ({cpu:.2f} CPU-s), {len(board.rows)} entries, {ranked} ranked at 4 bit"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak:.0f} MiB; {'same bytes every round' if len(digests) == 1 else 'BYTES DIFFER'}: "
          f"{', '.join(sorted(digests))[:64]}")  # fmt: skip


if __name__ == "__main__":
    main()
