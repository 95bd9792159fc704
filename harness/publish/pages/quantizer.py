"""The page of one quantizer: its definition, its proofs over all submissions, every score under it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any

from harness.publish import formatting
from harness.publish.board import Board, LeaderboardRow
from harness.publish.pages.submission import moved, proof_in_words
from harness.publish.thresholds import REFERENCE, RULES, UTILITY
from harness.records import CellResult, Proof, QuantizerSpec


def pages(cells: Sequence[CellResult]) -> dict[str, str]:
    """Returns the page of every quantizer of the store, by name."""
    return {name: f"quantizer/{formatting.slug(name)}.html" for name in sorted({cell.spec.name for cell in cells})}


def context(
    name: str, boards: Sequence[Board], cells: Sequence[CellResult], homes: Mapping[str, str]
) -> dict[str, Any]:  # fmt: skip
    """Returns the template's variables for one quantizer.

    Args:
        name: Of the quantizer.
        boards: Every corpus of the store.
        cells: All cells of the store, for those that did not finish.
        homes: First page by corpus.
    """
    tried = {(cell.corpus, cell.cell.submission) for cell in cells if cell.spec.name == name}
    groups = [
        _group(name, board, {submission for corpus, submission in tried if corpus == board.corpus}, homes[board.corpus])
        for board in boards
        if name in {spec.name for spec in board.quantizers}
    ]
    proofs = [line for group in groups for line in group["proofs"]]
    spec = next(cell.spec for cell in reversed(cells) if cell.spec.name == name)
    specs = sorted({one.name: one for one in (cell.spec for cell in cells)}.values(), key=_widest_first)
    lost = Counter(cell.status for cell in cells if cell.spec.name == name and cell.status != "finished")
    return {
        "name": name,
        "spec": spec,
        "what": in_words(spec),
        "groups": groups,
        "proofs": proofs,
        "proven": summary([line["proof"] for line in proofs]),
        "lost": ", ".join(f"{count} {status}" for status, count in sorted(lost.items())),
        "others": [one.name for one in specs],
        "moved": moved,
    }


def _widest_first(spec: QuantizerSpec) -> tuple[int, str]:
    return -spec.bits, spec.name


def in_words(spec: QuantizerSpec) -> list[tuple[str, str]]:
    """Returns what a quantizer is, as (name, value) pairs."""
    if spec.name == REFERENCE:
        return [("Backend", "none: weights as submitted, in 16 bit")]
    symmetric = {True: "symmetric", False: "asymmetric", None: "the code book decides"}
    return [
        ("Backend", spec.backend),
        ("Bits per code", str(spec.bits)),
        ("Group", f"{spec.group_size} weights share a scale" if spec.group_size else "one scale per row"),
        ("Grid", symmetric[spec.symmetric]),
        ("Calibration", f"texts {spec.calibration[:16]}" if spec.calibration else "none"),
        *((key, str(value)) for key, value in sorted(spec.options.items())),
    ]


def summary(proofs: Sequence[Proof]) -> list[tuple[str, str]]:
    """Returns what all proofs of one quantizer have in common, as (name, value or range) pairs; empty without one."""
    if not proofs:
        return []
    errors = [proof.relative_error for proof in proofs if proof.relative_error is not None]
    found = sorted({proof_in_words(proof)["symmetry"] for proof in proofs})
    return [
        ("Proofs", f"{len(proofs)}, one for each model"),
        (
            "Layers",
            f"{sum(p.quantized_layers for p in proofs):,} of {sum(p.linear_layers for p in proofs):,} quantized",
        ),
        ("Most levels in a group", _span([proof.max_levels for proof in proofs], 0)),
        ("Bits per weight", _span([proof.bits_per_weight for proof in proofs], 2)),
        ("Bytes", _span([proof.size_bytes for proof in proofs], 0)),
        ("Relative error", _span(errors, 4) if errors else "not known"),
        ("Grid found", ", ".join(found)),
    ]


def _span(values: Sequence[float], digits: int) -> str:
    low, high = (f"{value:,.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _group(name: str, board: Board, tried: Set[str], home: str) -> dict[str, Any]:
    # A failed or limited cell counts for nothing, but its submission is listed, with the reason.
    rows = [row for row in (*board.rows, *board.controls) if row.submission.name in tried]
    return {
        "corpus": board.corpus,
        "home": home,
        "sentence": _sentence(name, rows),
        "damage": [told for row in rows if (told := _damage(name, row)) is not None],
        "rows": rows,
        "proofs": [
            {"row": row, "corpus": board.corpus, "proof": proof, **proof_in_words(proof)}
            for row in rows
            if (proof := _proof(name, row)) is not None
        ],
    }


def _proof(name: str, row: LeaderboardRow) -> Proof | None:
    return next((cell.proof for cell in row.by_quantizer[name].cells.values() if cell.proof is not None), None)


def _sentence(name: str, rows: Sequence[LeaderboardRow]) -> str:
    words = Counter(row.by_quantizer[name].verdict.word for row in rows if row.submission.role == "entry")
    if not words:
        return "No entry yet."
    told = ", ".join(f"{word} {words[word]}" for word in RULES if words[word])
    return f"{sum(words.values())} {'entry' if sum(words.values()) == 1 else 'entries'}: {told}."


def _damage(name: str, row: LeaderboardRow) -> str | None:
    """Returns how much of a control's own 16-bit utility is left, None where that is not known."""
    now, before = (
        row.by_quantizer[at].metrics.get(UTILITY) if at in row.by_quantizer else None for at in (name, REFERENCE)
    )
    if row.submission.role == "entry" or name == REFERENCE or now is None or before is None or not before.score.value:
        return None
    kept = formatting.percent(now.score.value / before.score.value)
    return f"{row.submission.name} keeps {kept} of its own 16-bit utility"
