"""What a reader of the sources alone can find wrong in a built site: nothing is rendered and no browser is needed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
CONTROLS = {"input", "select", "textarea"}
REFERENCES = ("aria-labelledby", "aria-describedby", "aria-controls", "for", "data-copy")
_QUOTED = re.compile(r'\s[^\s"\'<>/=]+="[^"]*"')


class Source(HTMLParser):
    """One page, read element by element: what it points to, what can be pointed to, and what is wrong in itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.ids: list[str] = []
        self.links: list[tuple[str, str]] = []
        self._references: list[str] = []
        self._open: list[tuple[str, Mapping[str, str]]] = []
        self._headings: list[int] = []
        self._policy = self._titled = False
        if not text.lower().startswith("<!doctype html>"):
            self._fault("no doctype")
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> stays open" for tag, _ in self._open]
        self.faults += [f"id {name!r} stands twice" for name in sorted(set(self.ids)) if self.ids.count(name) > 1]
        self.faults += [f"{name!r} is referred to and no id" for name in self._references if name not in self.ids]
        if self._headings.count(1) != 1:
            self._fault(f"{self._headings.count(1)} first headings")
        if not self._titled:
            self._fault("no title")

    def _fault(self, text: str) -> None:
        self.faults.append(f"line {self.getpos()[0]}: {text}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if len(found) < len(attrs):
            self._fault(f"<{tag}> has an attribute twice")
        if "=" in _QUOTED.sub("", self.get_starttag_text() or ""):
            self._fault(f"<{tag}> has a value without quotes")
        self._safety(tag, found)
        self._names(tag, found)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [(tag, found[name]) for name in ("href", "src") if name in found]
        self._references += [name for key in REFERENCES for name in found.get(key, "").split()]
        if tag not in VOID:
            self._open.append((tag, found))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1][0] != tag:
            self._fault(f"</{tag}> closes {f'<{self._open[-1][0]}>' if self._open else 'nothing'}")
            return
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] == "title" and data.strip():
            self._titled = True

    def _safety(self, tag: str, found: Mapping[str, str]) -> None:
        if found.get("http-equiv", "").lower() == "content-security-policy":
            rules = dict(rule.strip().split(" ", 1) for rule in found["content"].split(";"))
            self._policy = rules.pop("default-src", "") == "'none'" and set(rules.values()) <= {"'self'", "'none'"}
        elif tag in ("script", "link", "style", "img", "body") and not self._policy:
            self._fault(f"<{tag}> stands before a strict Content-Security-Policy")
        if tag == "style" or "style" in found:
            self._fault(f"<{tag}> has a style of its own")
        if tag == "script" and "src" not in found:
            self._fault("a script stands in the page")
        if handlers := [name for name in found if name.startswith("on")]:
            self._fault(f"<{tag}> has {handlers[0]}")
        if tag in ("iframe", "object", "embed", "base", "form", "canvas"):
            self._fault(f"<{tag}> has no place here")

    def _names(self, tag: str, found: Mapping[str, str]) -> None:
        around = [open_tag for open_tag, _ in self._open]
        if tag == "html" and not found.get("lang"):
            self._fault("<html> names no language")
        if re.fullmatch("h[1-6]", tag):
            level = int(tag[1])
            if level > (self._headings[-1] if self._headings else 0) + 1:
                self._fault(f"<{tag}> skips a level of headings")
            self._headings.append(level)
        if tag == "img" and "alt" not in found:
            self._fault("<img> has no alt")
        if tag == "svg" and found.get("aria-hidden") != "true" and "aria-label" not in found:
            self._fault("<svg> is neither named nor hidden from screen readers")
        if tag == "th" and found.get("scope") not in ("row", "col", "rowgroup", "colgroup"):
            self._fault("<th> has no scope")
        if tag == "table" and not any(_named(attributes) for _, attributes in self._open):
            self._fault("<table> stands in nothing that has a name")
        if tag in CONTROLS and "label" not in around and not _named(found):
            self._fault(f"<{tag}> has no label")


def _named(attributes: Mapping[str, str]) -> bool:
    return bool(attributes.get("aria-label", "").strip() or attributes.get("aria-labelledby"))


def faults(site: Path) -> list[str]:
    """Returns everything wrong in the pages of a site and in the links between its files.

    Args:
        site: Folder of the built pages.

    Returns:
        One sentence per fault, beginning with the page; none when all is well.
    """
    sources = {path.resolve(): Source(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, source in sources.items():
        page = path.relative_to(site.resolve()).as_posix()
        found += [f"{page}: {text}" for text in (*source.faults, *_broken(path, source, site.resolve(), sources))]
    return found


def _broken(page: Path, source: Source, site: Path, sources: Mapping[Path, Source]) -> Iterator[str]:
    for tag, link in source.links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            if parts.scheme not in ("http", "https") or not parts.netloc:
                yield f"{link!r} is no web address"
            elif tag not in ("a", "link"):
                yield f"<{tag}> asks {parts.netloc} for a file"
            continue
        address, fragment = urldefrag(link)
        target = (page.parent / unquote(address.split("?")[0])).resolve() if address else page
        if not target.is_relative_to(site) or not target.is_file():
            yield f"{link!r} leads nowhere"
        elif fragment and fragment not in (sources[target].ids if target in sources else ()):
            yield f"{link!r} leads to a page without that place"


PROPERTY = re.compile(r"--([\w-]+):\s*(#[0-9a-f]{6})\b", re.IGNORECASE)


def palettes(stylesheet: str) -> list[dict[str, str]]:
    """Returns the colours of every block of custom properties: the light ones first, then every dark copy."""
    blocks = [dict(PROPERTY.findall(block)) for block in re.findall(r"\{([^{}]*)\}", stylesheet)]
    return [block for block in blocks if "ink" in block]


def contrast(one: str, two: str) -> float:
    """Returns WCAG's contrast ratio of two colours such as ``#16191d``; 1 to 21."""
    light, deep = sorted((_luminance(one), _luminance(two)), reverse=True)
    return (light + 0.05) / (deep + 0.05)


def _luminance(colour: str) -> float:
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
