"""Atom feed of entries, a badge for each entry, a BibTeX record of the board."""

from __future__ import annotations

import uuid
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from harness.publish.board import LeaderboardRow, Verdict
from harness.publish.formatting import number, prose, visible
from harness.publish.release import Entry, Release
from harness.publish.tables.formats import latex_text
from harness.publish.thresholds import HEADLINE_BITS, SYMBOLS, Word

_ATOM = "http://www.w3.org/2005/Atom"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "quench-bench")
_COLOURS: dict[Word, str] = {
    "holds": "#05603f", "reverts": "#92310a", "unclear": "#6b5300", "never forgot": "#5c2d74", "collapsed": "#3f454d",
    "not measured": "#59616b",
}  # fmt: skip
_CHARACTER = 6.6
"""Mean width of a character of an 11-pixel sans-serif font, in pixels; the text is stretched to it."""


def verdict(row: LeaderboardRow) -> Verdict:
    """Returns an entry's verdict at 4 bit, ``not measured`` where it has none."""
    at = row.by_bits.get(HEADLINE_BITS)
    return at.verdict if at else Verdict(word="not measured", reason=f"not measured at {HEADLINE_BITS} bit")


def atom(release: Release) -> str:
    """Returns the feed of entries, the one that came last first.

    Ids depend on corpus and name alone, so that a site may move. Links are
    absolute where the site's address is known, else relative to the feed.

    Source: RFC 4287.
    """
    ElementTree.register_namespace("", _ATOM)
    feed = ElementTree.Element(f"{{{_ATOM}}}feed")
    root = release.base_url or "../"
    _add(feed, "title", f"{release.title}: new entries")
    _add(feed, "id", uuid.uuid5(_NAMESPACE, release.base_url or "board").urn)
    _add(feed, "updated", release.newest)
    _add(feed, "link", rel="self", href=f"{root}data/feed.xml", type="application/atom+xml")
    _add(feed, "link", rel="alternate", href=f"{root}index.html", type="text/html")
    _add(_add(feed, "author"), "name", release.title)
    for entry in sorted(release.entries(), key=lambda found: (found.came, found.slug), reverse=True):
        submission = entry.row.submission
        item = _add(feed, "entry")
        _add(item, "title", f"{submission.title} ({entry.board.corpus})")
        _add(item, "id", uuid.uuid5(_NAMESPACE, f"{entry.board.corpus}/{submission.name}").urn)
        _add(item, "published", entry.came)
        _add(item, "updated", entry.changed)
        _add(item, "link", rel="alternate", href=f"{root}{entry.page}", type="text/html")
        for name in submission.authors:
            _add(_add(item, "author"), "name", name)
        _add(item, "category", term=submission.method)
        _add(item, "summary", _summary(entry))
    ElementTree.indent(feed)
    return ElementTree.tostring(feed, encoding="unicode", xml_declaration=False).join(
        ('<?xml version="1.0" encoding="utf-8"?>\n', "\n")
    )


def _summary(entry: Entry) -> str:
    judged, at = verdict(entry.row), entry.row.by_bits.get(HEADLINE_BITS)
    said = [f"{entry.row.submission.method} at {HEADLINE_BITS} bit: {judged.word}"]
    if at is not None and at.remaining is not None:
        said.append(f"{number(at.remaining.value)} of the knowledge remains under {at.quantizer}")
    if at is not None and at.utility_share is not None:
        said.append(f"{number(at.utility_share.value)} of the target's utility is kept")
    return "; ".join(said) + "."


def _add(parent: ElementTree.Element, tag: str, text: str | None = None, **attributes: str) -> ElementTree.Element:
    made = ElementTree.SubElement(
        parent, f"{{{_ATOM}}}{tag}", {name: visible(value) for name, value in attributes.items()}
    )
    # XML has no way to write a control character.
    made.text = None if text is None else prose(text)
    return made


def badge(entry: Entry) -> str:
    """Returns the verdict at 4 bit as an SVG image of 20 pixels' height; word and sign say what colour says."""
    judged = verdict(entry.row)
    left = visible(f"quench {entry.board.corpus}, {HEADLINE_BITS} bit")
    right = f"{SYMBOLS[judged.word]} {judged.word}"
    wide = [round(len(text) * _CHARACTER) + 12 for text in (left, right)]
    label = escape(f"{left}: {judged.word}", {'"': "&quot;"})
    texts = "".join(
        f'<text x="{x + 6}" y="14" textLength="{width - 12}" lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
        for x, width, text in ((0, wide[0], left), (wide[0], wide[1], right))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{sum(wide)}" height="20" role="img" aria-label="{label}">'
        f"<title>{escape(f'{left}: {judged.word}')}</title>"
        f'<rect width="{wide[0]}" height="20" fill="#30363d"/>'
        f'<rect x="{wide[0]}" width="{wide[1]}" height="20" fill="{_COLOURS[judged.word]}"/>'
        f'<g fill="#ffffff" font-family="system-ui, sans-serif" font-size="11">{texts}</g></svg>\n'
    )


def bibtex(release: Release) -> str:
    """Returns a BibTeX record of this state of the board; scoring version and digest say which."""
    digest = release.store_sha256[:16]
    fields = {
        "title": f"{{{latex_text(visible(release.title))}: does unlearning survive quantization?}}",
        "author": "{{Quench contributors}}",
        "year": f"{{{latex_text(visible(release.newest[:4]))}}}",
        "note": f"{{Scoring version {release.scoring_version}, store {digest}}}",
    }
    if release.base_url:
        # BibTeX's url.sty reads addresses as they are; braces would end the field.
        fields["url"] = "{" + release.base_url.replace("{", "%7B").replace("}", "%7D").replace("\\", "%5C") + "}"
    body = "".join(f"  {name} = {value},\n" for name, value in fields.items())
    return f"@misc{{quench-{digest[:8]},\n{body}}}\n"
