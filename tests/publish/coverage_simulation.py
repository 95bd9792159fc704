"""How often 95% intervals hold the truth, for score shapes of the miniature's cells.

The documents of a cell stand for a population. Samples of ``SIZE`` documents
are drawn from it, those of an entry, its target and the retrained model
jointly, forget and holdout texts apart; each sample goes through the code that
makes the board's intervals. Run as a script it prints the table of
docs/statistics.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.publish.statistics import bootstrap as resampling
from harness.publish.statistics import quantities as statistics
from harness.publish.statistics.bootstrap import Estimate, Resampled
from harness.publish.thresholds import FEW_DOCUMENTS, FORGET_METRICS, REFERENCE
from harness.records import CellResult
from harness.score.metrics.formulas import auc
from harness.store.store import Store

SIZE = 100
QUANTIZERS = (REFERENCE, "rtn-8bit-g128", "rtn-4bit-g128", "bnb-nf4", "rtn-2bit-g64")
IDS = tuple(("forget", index, str(index)) for index in range(SIZE))
BOTH = tuple((split, index, str(index)) for split in ("forget", "holdout") for index in range(SIZE))

Cells = Mapping[tuple[str, str, str], CellResult]


@dataclass(frozen=True)
class Covered:
    """One quantity of one cell: how many documents carry it, how often its two intervals hold the truth."""

    quantity: str
    cell: str
    carriers: float
    bootstrap: float
    shown: float
    samples: int


def load(store: Path) -> Cells:
    with Store.open(store, read_only=True) as opened:
        cells = [cell for cell in opened.cells(with_documents=True) if cell.corpus == "mini"]
    return {(c.cell.submission, c.cell.quantizer, c.cell.task.removeprefix("muse_mini_")): c for c in cells}


def population(cell: CellResult, key: str, split: str | None = None) -> np.ndarray:
    found = sorted((d for d in cell.documents if split in (None, d.split)), key=lambda d: (d.split, d.index))
    return np.array([document.scores[key] for document in found])


def carriers(influence: np.ndarray) -> float:
    """Returns how many of ``SIZE`` documents carry a quantity, from the whole population's influences."""
    away = influence - influence.mean()
    fourth = float((away**4).mean())
    return SIZE * float((away**2).mean()) ** 2 / fourth if fourth > 1e-24 else 0.0


def quantities(scores: np.ndarray) -> list[Resampled]:
    """Returns the mean of each sample of ``scores`` [samples, SIZE] as the board resamples it."""
    draws = resampling.resampled_mean(scores, resampling.counts("simulated", SIZE))
    means = scores.mean(axis=1)
    return [
        Resampled(float(mean), row, IDS, (values - mean) / SIZE, 1 / SIZE)
        for mean, row, values in zip(means, draws, scores, strict=True)
    ]


def holds(found: Estimate, truth: float) -> bool:
    return found.low is not None and found.low - 1e-12 <= truth <= found.high + 1e-12


def score(quantity: str, cell: str, carried: float, found: list[Resampled], truth: float, limits: bool) -> Covered:
    plain = [one.estimate() for one in found]
    shown = [one.cautious(0.0, 1.0) if limits else one.cautious() for one in found]
    if quantity in ("remaining share", "recovery"):
        shown = plain
    return Covered(
        quantity, cell, carried, float(np.mean([holds(one, truth) for one in plain])),
        float(np.mean([holds(one, truth) for one in shown])), len(found),
    )  # fmt: skip


def means(cells: Cells, samples: int) -> Iterator[Covered]:
    """Yields coverage of means, changes, remaining shares and recoveries."""
    rng = np.random.default_rng(0)
    for metric in (*FORGET_METRICS, "knowmem_r"):
        for entry in sorted({name for name, _, _ in cells}):
            submission = cells[entry, REFERENCE, metric].submission
            for quantizer in QUANTIZERS:
                places = {"now": (entry, quantizer), "then": (entry, REFERENCE)}
                if submission.role == "entry" and metric in FORGET_METRICS:
                    places |= {
                        f"{role} {when}": (name, at)
                        for role, name in (("target", submission.target), ("retrain", submission.retrain))
                        for when, at in (("now", quantizer), ("then", REFERENCE))
                    }
                whole = {key: population(cells[*place, metric], metric) for key, place in places.items()}
                chosen = rng.integers(0, whole["now"].size, (samples, SIZE))
                yield from _of_cell(
                    f"{entry} {quantizer} {metric}", whole, {key: quantities(x[chosen]) for key, x in whole.items()},
                    changed=quantizer != REFERENCE,
                )  # fmt: skip


def _of_cell(
    cell: str, whole: Mapping[str, np.ndarray], drawn: Mapping[str, list[Resampled]], *, changed: bool
) -> Iterator[Covered]:
    truth = {key: float(values.mean()) for key, values in whole.items()}
    yield score("mean", cell, carriers(whole["now"]), drawn["now"], truth["now"], limits=True)
    if changed:
        change = [now - then for now, then in zip(drawn["now"], drawn["then"], strict=True)]
        apart = whole["now"] - whole["then"]
        yield score("change", cell, carriers(apart), change, float(apart.mean()), limits=False)
    if "target now" not in whole:
        return
    shares, influences, true_shares = {}, {}, {}
    for when in ("now", "then"):
        gap = whole[f"target {when}"] - whole[f"retrain {when}"]
        true_shares[when] = (truth[when] - truth[f"retrain {when}"]) / gap.mean()
        influences[when] = (whole[when] - whole[f"retrain {when}"] - true_shares[when] * gap) / gap.mean()
        shares[when] = [
            None if (known := statistics.knowledge_gap(top, bottom)) is None
            else statistics.remaining_share(own, bottom, known)
            for own, top, bottom in zip(
                drawn[when], drawn[f"target {when}"], drawn[f"retrain {when}"], strict=True
            )
        ]  # fmt: skip
    rho = [one for one in shares["now"] if one is not None]
    yield score("remaining share", cell, carriers(influences["now"]), rho, true_shares["now"], limits=False)
    if changed:
        pairs = zip(shares["now"], shares["then"], strict=True)
        back = [now - then for now, then in pairs if now is not None and then is not None]
        moved = influences["now"] - influences["then"]
        yield score("recovery", cell, carriers(moved), back, true_shares["now"] - true_shares["then"], limits=False)


def areas(cells: Cells, samples: int) -> Iterator[Covered]:
    """Yields coverage of AUC, and of PrivLeak with the retrained model's AUC measured on the same texts."""
    rng = np.random.default_rng(1)
    retrain = [population(cells["mini-retrain", REFERENCE, "privleak"], "min_k_40", s) for s in ("forget", "holdout")]
    tables = [resampling.counts(f"simulated/{side}", SIZE, dtype=np.uint16) for side in ("forget", "holdout")]
    for entry in sorted({name for name, _, _ in cells} - {"mini-retrain"}):
        for quantizer in (REFERENCE, "rtn-4bit-g128"):
            sides = [population(cells[entry, quantizer, "privleak"], "min_k_40", s) for s in ("forget", "holdout")]
            area, share = [], []
            for _ in range(samples):
                chosen = [rng.integers(0, side.size, SIZE) for side in sides]
                own = _area([side[one] for side, one in zip(sides, chosen, strict=True)], tables)
                reference = _area([side[one] for side, one in zip(retrain, chosen, strict=True)], tables)
                area.append(own)
                share.append(statistics.relative(own, reference.value, reference))
            true_area, true_reference = auc(*sides), auc(*retrain)
            truth = 100 * (true_area - true_reference) / true_reference
            cell = f"{entry} {quantizer} privleak"
            middle = [float(np.median([one.carriers for one in found])) for found in (area, share)]
            yield score("AUC", cell, middle[0], area, true_area, limits=True)
            yield score("PrivLeak", cell, middle[1], share, truth, limits=False)


def _area(sides: list[np.ndarray], tables: list[np.ndarray]) -> Resampled:
    return statistics.area(*sides, *tables, BOTH)


def table(found: list[Covered]) -> str:
    """Returns the Markdown table of docs/statistics.md."""
    lines = [
        "| quantity | documents that carry it | cells | bootstrap: mean | least | what is shown: mean | least |",
        "|---|---|---|---|---|---|---|",
    ]
    for quantity in dict.fromkeys(one.quantity for one in found):
        for low, high in ((0, FEW_DOCUMENTS), (FEW_DOCUMENTS, 2 * FEW_DOCUMENTS), (2 * FEW_DOCUMENTS, SIZE + 1)):
            band = [one for one in found if one.quantity == quantity and low <= one.carriers < high]
            if band:
                name = f"{low} to {high}" if high <= SIZE else f"{low} and more"
                numbers = [
                    f([getattr(one, side) for one in band]) for side in ("bootstrap", "shown") for f in (np.mean, min)
                ]
                lines.append(
                    f"| {quantity} | {name} | {len(band)} | {' | '.join(f'{100 * n:.1f}%' for n in numbers)} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    cells = load(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("results.duckdb"))
    sys.stdout.write(table([*means(cells, 1000), *areas(cells, 500)]))


if __name__ == "__main__":
    main()
