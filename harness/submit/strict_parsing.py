"""YAML and JSON from strangers: bounded, without aliases, duplicate keys, tags or non-numbers.

The errors here say why a file is not read further; callers put its name before
them.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import yaml

from harness.errors import InputError, one_line

_MAX_DEPTH = 40
_MERGE = "tag:yaml.org,2002:merge"

NEVER_SHOWN = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
"""For a regular expression's brackets: what can't be seen anywhere, or turns the text around it.

Controls (so that no terminal obeys them), marks of direction, zero-width
spaces and separators; tab and line feed are not among them.
"""

HIDDEN = NEVER_SHOWN + r"\u200c\u200d"
"""The same with the two joiners, which some scripts need between letters (``joins``)."""

_HIDDEN = re.compile(f"[{HIDDEN}\ud800-\udfff]")
_ZWNJ, _ZWJ = "\u200c", "\u200d"
_VIRAMA = 9
_EMOJI_PARTS = {"\ufe0f", *map(chr, range(0x1F3FB, 0x1F400))}


def _letters_with(form: str) -> frozenset[str]:
    """Returns the Arabic letters that Unicode knows a form of: ``<initial>`` ones join what follows."""
    told = (unicodedata.decomposition(chr(code)).split() for code in range(0xFB50, 0xFF00))
    return frozenset(chr(int(each[1], 16)) for each in told if len(each) == 2 and each[0] == form)


@functools.cache
def _arabic() -> tuple[frozenset[str], frozenset[str]]:
    return _letters_with("<initial>"), _letters_with("<final>")


def joins(text: str, place: int) -> bool:
    """Returns whether a zero-width joiner or non-joiner stands where it changes what is seen.

    Both do after a virama and before a letter, the non-joiner between two
    Arabic letters that would join, the joiner inside an emoji.

    Args:
        text: A text.
        place: Where in it the character stands.

    Source: Unicode Standard Annex #31, section 2.3 (A1, A2, B); Unicode Technical Standard #51 (emoji sequences).
    """
    before, after = text[:place], text[place + 1 :]
    if text[place] not in (_ZWNJ, _ZWJ) or not before or not after:
        return False
    if unicodedata.combining(before[-1]) == _VIRAMA:
        return unicodedata.category(after[0]).startswith("L")
    if text[place] == _ZWJ:
        base = next((each for each in reversed(before) if each not in _EMOJI_PARTS), " ")
        return _is_pictogram(base) and _is_pictogram(after[0])
    joining, joined = _arabic()
    base = next((each for each in reversed(before) if not unicodedata.combining(each)), " ")
    return base in joining and after[0] in joined


def _is_pictogram(character: str) -> bool:
    # The arrows of nodding and shaking heads are mathematical signs.
    return character >= "\u2190" and (unicodedata.category(character) == "So" or character in "\u2194\u2195")


def hidden_in(text: str) -> str | None:
    """Returns the first character of a text that can't be seen or turns it, None where all is shown."""
    found = (match for match in _HIDDEN.finditer(text) if not joins(text, match.start()))
    return next((match[0] for match in found), None)


class _UniqueKeys(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice instead of keeping the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            # By value too: `yes`, `true` and `on` are one key.
            alike = {key.value} if key.tag == _MERGE else {key.value, self.construct_object(key)}
            if alike & seen:
                raise InputError(f"the key {key.value!r} is given twice: keep one")
            seen |= alike
        return super().construct_mapping(node, deep=deep)


def visible(text: str) -> str:
    """Returns a stranger's text with everything that can't be seen written as an escape."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _text(path: Path, limit: int) -> str:
    size = path.stat().st_size
    if size > limit:
        raise InputError(f"it has {size} bytes, and at most {limit} are read")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError("it is not UTF-8 text") from error


def read_yaml(path: Path, *, limit: int) -> Any:
    """Returns what a YAML file of one document holds, as plain Python values.

    Args:
        path: The file.
        limit: Largest size in bytes.

    Raises:
        InputError: Too large, not UTF-8, not YAML, more than one
            document, or with anchors, aliases, tags that are not YAML's own or
            keys given twice.
    """
    text = _text(path, limit)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise InputError("it uses a YAML anchor or alias (& or *): write the value out")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > _MAX_DEPTH:
                raise InputError(f"it is nested more than {_MAX_DEPTH} deep")
        return yaml.load(text, Loader=_UniqueKeys)
    except InputError:
        raise
    # The library itself fails on some texts ("\U99999999" overflows): whatever it raises, the text is refused.
    except Exception as error:
        problem = visible(one_line(error))
        raise InputError(f"it is not plain YAML ({problem[:200]})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise InputError(f"the key {key!r} is given twice")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise InputError(f"it holds {name}, which is no JSON number")


def parse_json(text: str) -> Any:
    """Returns what a JSON text holds.

    Raises:
        InputError: Not JSON, too deep, keys given twice, or NaN and its
            like.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is not JSON ({str(error)[:200]})") from error


def read_json(path: Path, *, limit: int) -> Any:
    """Returns what a JSON file of at most ``limit`` bytes holds.

    Raises:
        InputError: As ``parse_json``, or too large or not UTF-8.
    """
    return parse_json(_text(path, limit))
