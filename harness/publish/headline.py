"""The verdict in a sentence, and one more by kind: counted, never typed."""

from __future__ import annotations

from collections.abc import Sequence

from harness.publish.board import Board, LeaderboardRow
from harness.records import Kind

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
