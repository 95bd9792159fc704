"""Removes tokens and passwords from logs, rows and pages."""

from __future__ import annotations

import os
import re
from pathlib import Path

HIDDEN = "[hidden]"
"""What stands where a secret stood."""

_SECRET_NAME = re.compile(r"(?:TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY|ACCESS_?KEY)$", re.IGNORECASE)
_SHORTEST = 8
_SHAPES = (
    (re.compile(r"\b(?:hf_|api_org_|ghp_|github_pat_|sk-)\w{8,}"), HIDDEN),
    (
        re.compile(r"(?i)(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|token)\s+)?)[^\s'\",}]+"),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"(?i)(\bbearer\s+)[\w.~+/=-]{8,}"), rf"\1{HIDDEN}"),
    (re.compile(r"(\w://[^\s/:@]*:)[^\s/@]+(?=@)"), rf"\1{HIDDEN}"),
)


_forgotten: set[str] = set()


def forget_secrets() -> None:
    """Takes secrets out of this process's environment; ``redact`` still knows them.

    For workers: they have no network to use a token on, only a log to lose it in.
    """
    for name in [name for name in os.environ if _SECRET_NAME.search(name)]:
        _forgotten.add(os.environ.pop(name))


def redact(text: str) -> str:
    """Returns a text without secrets: shapes of known tokens, headers, and values of secret environment variables."""
    for value in {*_forgotten, *(value for name, value in os.environ.items() if _SECRET_NAME.search(name))}:
        if len(value) >= _SHORTEST:
            text = text.replace(value, HIDDEN)
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    return text


def redact_file(path: Path) -> None:
    """Redacts a text file in place; leaves alone what holds no secret or can't be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        clean = redact(text)
        if clean != text:
            path.write_text(clean, encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
