"""Numbers and untrusted text, formatted for a page: every Jinja filter."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from harness.provenance import sha256_text
from harness.publish.statistics.quantities import Estimate
from harness.submit.strict_parsing import joins

EXCERPT = 200
"""Most characters of a corpus text or an answer that a page shows."""

_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


def visible(text: Any, *, keep: str = "") -> str:
    """Returns text in which control, right-to-left and zero-width characters are shown as escapes.

    Args:
        text: Whatever a stranger wrote.
        keep: Characters that stay, e.g. line ends in longer texts.
    """
    plain = str(text)
    if (plain.translate(dict.fromkeys(map(ord, keep))) if keep else plain).isprintable():
        return plain
    return "".join(
        character
        if character in keep or unicodedata.category(character) not in _INVISIBLE or joins(plain, place)
        else f"\\u{ord(character):04x}"
        for place, character in enumerate(plain)
    )


def prose(text: Any) -> str:
    """Returns a longer text with its line ends, everything else invisible shown as escapes."""
    return visible(text, keep="\n\t")


def excerpt(text: Any, length: int = EXCERPT) -> str:
    """Returns at most ``length`` characters, with an ellipsis where something is left out."""
    whole = prose(text)
    return whole if len(whole) <= length else f"{whole[: length - 1]}…"


def ending(text: Any, length: int = EXCERPT) -> str:
    """Returns the last words of a text that may itself be cut, at most ``length`` characters with the ellipsis.

    A text of ``length`` characters or more counts as cut: the store keeps no more of a prompt.
    """
    whole = prose(text)
    if len(whole) < length:
        return whole
    rest = whole[1 - length :]
    first = re.search(r"\s", rest[: length // 4])
    return f"…{rest[first.end() :] if first else rest}"


def web_address(text: Any) -> str | None:
    """Returns an http(s) address that may become a link, None for anything else."""
    if not isinstance(text, str) or any(unicodedata.category(c) in _INVISIBLE or c.isspace() for c in text):
        return None
    try:
        parts = urlsplit(text)
    except ValueError:
        return None
    return text if parts.scheme in ("http", "https") and parts.netloc else None


def slug(name: str) -> str:
    """Returns a file name for a submission: its own name where that is safe, a digest elsewhere."""
    return name if _SLUG.fullmatch(name) and ".." not in name else f"x-{sha256_text(name)[:12]}"


def number(value: float | None, digits: int = 2) -> str:
    """Returns a number with fixed digits, never ``-0.00``; a dash where there is none."""
    if value is None:
        return "–"  # noqa: RUF001 - a dash of the width of a figure
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def signed(value: float | None, digits: int = 2) -> str:
    """Returns a difference with its sign."""
    text = number(value, digits)
    return f"+{text}" if value is not None and float(text) > 0 else text


def percent(value: float | None) -> str:
    """Returns a share in whole percent."""
    return number(None) if value is None else f"{number(100 * value, 0)}%"


def ends(estimate: Estimate | None, digits: int = 2, scale: float = 1.0) -> str:
    """Returns an interval as ``[low, high]``, empty where there is none."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"[{number(estimate.low * scale, digits)}, {number(estimate.high * scale, digits)}]"


def place(value: float, low: float = -0.25, high: float = 1.25, width: float = 96) -> str:
    """Returns where a remaining share lies on a bar of ``width`` units, kept inside it."""
    return f"{width * (min(max(value, low), high) - low) / (high - low):.1f}"


def heat(value: float | None) -> str:
    """Returns the shade of a remaining share: 0 (forgotten) to 4 (as the target), or none."""
    if value is None:
        return "none"
    return str(sum(value > limit for limit in (0.1, 0.25, 0.5, 0.8)))


def good_or_bad(change: Estimate | None, before: float | None, direction: str) -> str:
    """Returns ``good`` or ``bad`` where the interval of a change excludes 0, else ``same``."""
    if change is None or change.low is None or change.high is None or change.low <= 0 <= change.high:
        return "same"
    better = change.value < 0
    if direction == "higher":
        better = change.value > 0
    elif direction == "toward_zero" and before is not None:
        better = abs(before + change.value) < abs(before)
    return "good" if better else "bad"


def marked(text: str, reference: str) -> Iterator[tuple[str, bool]]:
    """Yields the answer in pieces, each with whether it is part of the longest common subsequence with the reference.

    Words are those of ROUGE-L: runs of Latin letters and digits, in lower case.
    """
    pieces = re.findall(r"[A-Za-z0-9]+|[^A-Za-z0-9]+", excerpt(text))
    words = [index for index, piece in enumerate(pieces) if piece[0].isascii() and piece[0].isalnum()]
    wanted = re.findall(r"[a-z0-9]+", excerpt(reference).lower())
    hits = {words[place] for place in _common([pieces[index].lower() for index in words], wanted)}
    between = {index for index in range(len(pieces)) if {index - 1, index + 1} <= hits}
    for hit, group in itertools.groupby(range(len(pieces)), key=lambda index: index in hits | between):
        yield "".join(pieces[index] for index in group), hit


def _common(words: list[str], wanted: list[str]) -> Iterator[int]:
    """Yields places in ``words`` of one longest common subsequence."""
    longest = [[0] * (len(wanted) + 1) for _ in range(len(words) + 1)]
    for i in reversed(range(len(words))):
        for j in reversed(range(len(wanted))):
            longest[i][j] = (
                longest[i + 1][j + 1] + 1 if words[i] == wanted[j] else max(longest[i + 1][j], longest[i][j + 1])
            )
    i = j = 0
    while i < len(words) and j < len(wanted):
        if words[i] == wanted[j]:
            yield i
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1


FILTERS = {
    "visible": visible, "prose": prose, "excerpt": excerpt, "web_address": web_address, "slug": slug,
    "number": number, "signed": signed, "percent": percent, "ends": ends, "place": place, "heat": heat,
    "marked": marked,
}  # fmt: skip
"""Filters of the templates, by name."""
