"""The sources of the built pages hold no fault, and each kind of fault would be told."""

from __future__ import annotations

from pathlib import Path

import pytest
from site_faults import contrast, faults, palettes

from harness.paths import content_dir

POLICY = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'"
HEAD = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>A page</title>'
GROUNDS = [
    *(("ink", ground) for ground in ("paper", "panel", "mark", "h0", "h1", "h2", "h3", "h4")), ("paper", "ink"),
    *((ink, ground) for ink in ("muted", "accent", "holds-ink", "reverts-ink") for ground in ("paper", "panel")),
    *((f"{name}-ink", name) for name in ("holds", "reverts", "unclear", "never", "collapsed", "no")), ("muted", "no"),
]  # fmt: skip


def page(body: str, head: str = HEAD) -> str:
    return f'<!doctype html><html lang="en"><head>{head}</head><body><h1>A page</h1>{body}</body></html>'


def told(tmp_path: Path, source: str) -> str:
    (tmp_path / "other.html").write_text(page('<p id="there">x</p>'), encoding="utf-8")
    (tmp_path / "index.html").write_text(source, encoding="utf-8")
    return "\n".join(faults(tmp_path))


def test_the_built_pages_hold_no_fault(site: Path) -> None:
    assert len(list(site.rglob("*.html"))) > 15
    assert faults(site) == []


@pytest.mark.parametrize(
    "body",
    [
        '<a href="other.html#there">x</a><a href="other.html?a=1">x</a><a href="#here">x</a><p id="here">x</p>',
        '<a href="https://example.org/?a=b#c" rel="nofollow">x</a><a href="HTTP://example.org">x</a>',
        '<div aria-label="Figures"><table><tr><th scope="col">x</th></tr></table></div>',
        '<label>Search <input type="search"></label><select aria-label="Kind"><option>x</option></select>',
        '<svg aria-hidden="true"><path d="M0 0"/></svg><svg role="img" aria-label="A curve"></svg>',
        '<p title="a=b c=d">1 &lt; 2, a=b</p><h2>x</h2><h3>y</h3><h2>z</h2><img src="other.html" alt="">',
    ],
)
def test_what_is_well_made_is_let_pass(tmp_path: Path, body: str) -> None:
    assert told(tmp_path, page(body)) == ""


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="gone.html">x</a>', "'gone.html' leads nowhere"),
        ('<a href="../../etc/passwd">x</a>', "leads nowhere"),
        ('<a href="other.html#gone">x</a>', "leads to a page without that place"),
        ('<a href="#gone">x</a>', "leads to a page without that place"),
        ('<a href="javascript:alert(1)">x</a>', "is no web address"),
        ('<a href="data:text/html,x">x</a>', "is no web address"),
        ('<a href="mailto:a@example.org">x</a>', "is no web address"),
        ('<a href="//example.org/x">x</a>', "is no web address"),
        ('<img src="https://example.org/x.png" alt="x">', "<img> asks example.org for a file"),
        ('<script src="https://example.org/x.js"></script>', "<script> asks example.org for a file"),
        ("<script>alert(1)</script>", "a script stands in the page"),
        ('<p style="color: red">x</p>', "<p> has a style of its own"),
        ("<style>p { color: red }</style>", "<style> has a style of its own"),
        ('<p onclick="alert(1)">x</p>', "<p> has onclick"),
        ("<p title=x>x</p>", "<p> has a value without quotes"),
        ("<p title='x'>x</p>", "<p> has a value without quotes"),
        ('<p class="a" class="b">x</p>', "<p> has an attribute twice"),
        ("<iframe></iframe>", "<iframe> has no place here"),
        ("<div><p>x</div></p>", "</div> closes <p>"),
        ("<div>x", "</body> closes <div>"),
        ('<p id="a">x</p><p id="a">y</p>', "id 'a' stands twice"),
        ('<section aria-labelledby="gone"></section>', "'gone' is referred to and no id"),
        ("<h3>x</h3>", "<h3> skips a level of headings"),
        ("<h1>x</h1>", "2 first headings"),
        ('<img src="other.html">', "<img> has no alt"),
        ("<svg></svg>", "<svg> is neither named nor hidden"),
        ("<table><tr><td>x</td></tr></table>", "<table> stands in nothing that has a name"),
        ('<div aria-label="x"><table><tr><th>x</th></tr></table></div>', "<th> has no scope"),
        ('<input type="search">', "<input> has no label"),
    ],
)
def test_every_fault_is_told_with_its_page(tmp_path: Path, body: str, fault: str) -> None:
    said = told(tmp_path, page(body))
    assert fault in said
    assert said.startswith("index.html: ")


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (page("").removeprefix("<!doctype html>"), "no doctype"),
        (page("").replace(' lang="en"', ""), "<html> names no language"),
        (page("", head=HEAD.replace("<title>A page</title>", "<title></title>")), "no title"),
        (page("", head="<title>A page</title>"), "<body> stands before a strict Content-Security-Policy"),
        (page("", head=f'<link rel="icon" href="other.html">{HEAD}'), "<link> stands before a strict"),
        (page("", head=HEAD.replace("script-src 'self'", "script-src 'self' 'unsafe-inline'")), "stands before"),
        (page("", head=HEAD.replace("default-src 'none'", "default-src 'self'")), "stands before"),
    ],
)
def test_a_page_without_its_frame_is_told(tmp_path: Path, source: str, fault: str) -> None:
    assert fault in told(tmp_path, source)


def test_text_can_be_read_and_lines_can_be_seen_in_both_themes() -> None:
    light, *dark = palettes((content_dir("leaderboard") / "static" / "quench.css").read_text(encoding="utf-8"))
    assert dark
    assert all(copy == dark[0] for copy in dark)
    for name, palette in (("light", light), ("dark", dark[0])):
        for ink, ground in GROUNDS:
            assert contrast(palette[ink], palette[ground]) >= 4.5, (name, ink, ground)
        for line in range(9):
            assert contrast(palette[f"c{line}"], palette["paper"]) >= 3, (name, line)


def test_contrast_is_that_of_the_guidelines() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=1e-3)
    assert contrast("#59616b", "#59616b") == 1
