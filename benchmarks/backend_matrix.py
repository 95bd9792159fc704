"""Writes the matrix of docs/backends.md: what each backend can do at each width, on any machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import marked_pages
from harness.quantize import backend, support_matrix

START, END = "<!-- matrix: made by benchmarks/backend_matrix.py from the backends -->", "<!-- /matrix -->"


def main() -> None:
    """Replaces the matrix between the two marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=Path("docs/backends.md"))
    page = parser.parse_args().page
    marked_pages.rewrite(page, START, END, markdown())


def markdown() -> str:
    """Returns the matrix and the reasons for its gaps; it says nothing of what is installed where it is made."""
    rows = support_matrix.matrix("cpu")
    titles = [
        "backend",
        *(f"{bits} bit" for bits in backend.WIDTHS),
        "calibrated",
        "same codes twice",
        "groups",
        "needs",
    ]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        cells = [
            f"`{row.backend}`",
            *("yes" if entry.presets else "-" for entry in row.entries),
            "yes" if row.calibrated else "no",
            "yes" if row.deterministic else "no",
            row.group_text or "none",
            f"`{row.install}`",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    gaps = [(row.backend, told, bits) for row in rows for told, bits in support_matrix.gaps(row, "cannot").items()]
    return "\n".join(
        [*lines, "", *(f"- `{name}`, {', '.join(map(str, bits))} bit: {told}." for name, told, bits in gaps)]
    )


if __name__ == "__main__":
    main()
