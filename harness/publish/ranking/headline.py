"""The headline of a board and of each kind of entry, counted from its verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from harness.publish.board import Board, LeaderboardRow
from harness.publish.thresholds import CONFIDENCE
from harness.records import Kind
from harness.score.metrics.formulas import METRICS

_NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
KINDS: dict[Kind, str] = {
    "full_model": "full-parameter", "lora_adapter": "LoRA", "quantized_checkpoint": "quantized",
}  # fmt: skip
"""What pages call each kind of submission."""


def headline_bits(rows: Sequence[LeaderboardRow], widths: Sequence[int], preferred: int) -> int:
    """Returns the width to open with: the preferred one, else the widest below 16 that has a rank, else the widest."""

    def ranked(bits: int) -> bool:
        return any(bits in row.by_bits and row.by_bits[bits].rank is not None for row in rows)

    below = [bits for bits in widths if bits < 16 and ranked(bits)]
    if preferred in below or (preferred in widths and not below):
        return preferred
    return next(iter(below or widths), preferred)


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


def _many(count: int, kind: str = "") -> str:
    return f"{kind} entr{'y' if count == 1 else 'ies'}".strip()


def _is(row: LeaderboardRow, bits: int, word: str) -> bool:
    return bits in row.by_bits and row.by_bits[bits].verdict.word == word


def sentence(board: Board) -> str:
    """Returns the board's verdict at its headline width."""
    bits, name = board.headline_bits, board.corpus.upper()
    ranked = board.ranked(bits)
    if not board.rows:
        return f"No entry has been measured on {name} yet."
    if not ranked:
        return f"At {bits} bit no entry on {name} can be ranked yet: {_common_reason(board, bits)}."
    holding = [row for row in ranked if _is(row, bits, "holds")]
    entries = f"{len(ranked)} useful {_many(len(ranked))} on {name}"
    if not holding:
        who = (
            f"the only {entries.removeprefix('1 ')} does not provably"
            if len(ranked) == 1
            else f"none of the {entries} provably"
        )
        verb = "still forget" if len(ranked) == 1 else "still forgets"
        first = f"At {bits} bit, {who} {verb} under every backend"
    else:
        first = f"At {bits} bit, {len(holding)} of {entries} still forget{'s' if len(holding) == 1 else ''}"
        shares = [share.value for row in holding if (share := row.by_bits[bits].utility_share) is not None]
        if shares:
            which = "it keeps" if len(holding) == 1 else "the most useful of them keeps"
            first += f"; {which} {max(shares):.0%} of the target's utility"
    return f"{first}."


def _common_reason(board: Board, bits: int) -> str:
    reasons = {row.by_bits[bits].unranked_reason for row in board.rows if bits in row.by_bits}
    usual = reasons.pop() if len(reasons) == 1 else None
    return usual.rstrip(".") if usual else "each one's reason stands below"


def question(board: Board) -> str:
    """Returns what was tested, in words that need no other page."""
    below = [str(bits) for bits in board.widths if bits < 16]
    ways = sum(spec.bits < 16 for spec in board.quantizers)
    many = f"{_number(len(board.rows))} model{'s' if len(board.rows) != 1 else ''}"
    if not board.rows or not below:
        return "Does what a model was made to forget come back when it is quantized?"
    widths = f"{', '.join(below[:-1])} or {below[-1]}" if len(below) > 1 else below[0]
    how = f"in {ways} ways" if ways > 1 else "in one way"
    return (
        f"{many[0].upper()}{many[1:]} that had been made to forget a set of texts "
        f"{'were' if many[-1] == 's' else 'was'} rounded to {widths} bit, {how}. Does the forgotten come back?"
    )


def detail(board: Board) -> str:
    """Returns which kinds of entries give back what they had forgotten; empty where nothing can be said."""
    bits = board.headline_bits
    ranked = board.ranked(bits)
    forgot = [row for row in ranked if not _is(row, bits, "never forgot")]
    parts = []
    for kind, word in KINDS.items():
        mine = [row for row in forgot if row.submission.kind == kind]
        back = sum(_is(row, bits, "reverts") for row in mine)
        if mine:
            parts.append((back, len(mine), word))
    if not any(back for back, _, _ in parts):
        return "Nothing that had been forgotten provably comes back." if forgot else ""
    said = [_share_of(back, total, word, first=not number) for number, (back, total, word) in enumerate(_worst(parts))]
    return f"{', '.join(said)}."


def certainty(board: Board) -> str:
    """Returns how sure the verdict is: documents, and the most that may have come back of what holds."""
    bits = board.headline_bits
    numbers = sorted(board.documents.values())
    if not numbers or not board.rows:
        return ""
    answered = f"{numbers[0]} to {numbers[-1]}" if numbers[0] < numbers[-1] else str(numbers[0])
    said = [f"How sure: metrics rest on {answered} documents each, with {CONFIDENCE:.0%} intervals"]
    ranked = board.ranked(bits)
    holding = [found for row in ranked if _is(row, bits, "holds") and (found := _most_back(row, bits)) is not None]
    if holding and bits != 16:
        most, metrics = max(found[0] for found in holding), sorted({name for _, names in holding for name in names})
        said.append(
            f"for what holds, at most {max(most, 0.0):.0%} of the target's {' and '.join(metrics)} may have come back"
        )
    unclear = sum(_is(row, bits, "unclear") for row in ranked)
    if unclear:
        said.append(f"{unclear} of {len(ranked)} can't be decided with so few")
    return f"{'; '.join(said)}."


def _most_back(row: LeaderboardRow, bits: int) -> tuple[float, list[str]] | None:
    """Returns the upper end of recovery over backends and the metrics that had been forgotten, None without any."""
    judged = [
        (result.recovery.high, METRICS[metric].label)
        for name in row.by_bits[bits].quantizers
        for metric, result in row.by_quantizer[name].metrics.items()
        if result.verdict == "holds" and result.recovery is not None and result.recovery.high is not None
    ]
    return (max(high for high, _ in judged), sorted({label for _, label in judged})) if judged else None


def _worst(parts: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    return sorted(parts, key=lambda part: -part[0] / part[1])


def _share_of(back: int, total: int, kind: str, *, first: bool) -> str:
    if back == total:
        who = (
            f"the {kind} entry" if total == 1 else f"{'both' if total == 2 else f'all {_number(total)}'} {kind} entries"
        )
    elif back == 0:
        who = f"the {kind} entry does not" if total == 1 else f"none of the {_number(total)} {kind} entries"
    else:
        who = f"{_number(back)} of the {_number(total)} {kind} entries"
    if not first:
        return who if back == 0 and total == 1 else f"{who} {'does' if back <= 1 else 'do'}"
    text = (
        f"{who} give{'s' if back == 1 or total == 1 else ''} back what {'it' if total == 1 else 'they'} had forgotten"
    )
    return text[0].upper() + text[1:]
