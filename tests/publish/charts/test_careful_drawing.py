"""What the drawing and the headline must survive: unprintable names, shared names, a single entry."""

from __future__ import annotations

from harness.publish.charts.svg import _printable


def test_a_chart_s_specification_holds_no_unprintable_character_wherever_it_stood() -> None:
    spec = {"title": "evil\x1b[2J", "data": [{"entry": "a\u202eb", "value": 1.5}], "n": None, "lines": "a\nb"}
    assert _printable(spec) == {
        "title": "evil\\u001b[2J", "data": [{"entry": "a\\u202eb", "value": 1.5}], "n": None, "lines": "a\nb",
    }  # fmt: skip
