"""Writes the table of docs/muse_mini.md from a store: what each mini model scores under each quantizer."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import marked_pages
from harness.publish.tables.rows import cell_rows
from harness.quantize.survival.measure import summarize
from harness.records import CellResult
from harness.store.store import Store

METRICS = ("verbmem_f", "knowmem_f", "knowmem_r", "privleak")
QUANTIZERS = ("reference", "rtn-8bit-g128", "rtn-4bit-g128", "rtn-4bit-g64", "bnb-nf4", "bnb-fp4", "rtn-3bit-g64",
              "rtn-2bit-g64")  # fmt: skip
START, END = "<!-- results: made by benchmarks/mini_table.py from results.duckdb -->", "<!-- /results -->"


def main() -> None:
    """Replaces the table between the two marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("results.duckdb"))
    parser.add_argument("--page", type=Path, default=Path("docs/muse_mini.md"))
    arguments = parser.parse_args()
    with Store.open(arguments.store, read_only=True) as store:
        cells = [cell for cell in store.cells() if cell.corpus == "mini" and cell.status == "finished"]
    marked_pages.rewrite(arguments.page, START, END, table(cells))


def table(cells: list[CellResult]) -> str:
    """Returns the Markdown table, with the survival ratio of the update on the target's own grid."""
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for row in cell_rows(cells):
        found = scores.setdefault((row["submission"], row["quantizer"]), {})
        found.update({metric: row[metric] for metric in METRICS if row[metric] is not None})
    survival = {
        cell.cell.submission: pooled.survival_ratio for cell in cells
        if cell.cell.quantizer == "rtn-4bit-g128" and (pooled := summarize(cell.survival)) is not None
    }  # fmt: skip
    names = list(dict.fromkeys(cell.cell.submission for cell in cells))
    lines = [
        f"| submission | {' | '.join(QUANTIZERS)} | survival, rtn-4bit-g128 |",
        "|---" * (len(QUANTIZERS) + 2) + "|",
    ]
    for name in names:
        parts = [" / ".join(f"{scores[name, q][m]:.0f}" for m in METRICS) for q in QUANTIZERS]
        ratio = survival.get(name)
        lines.append(f"| `{name}` | {' | '.join(parts)} | {'' if ratio is None else f'{ratio:.2f}'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
