from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest
import synthetic_board as synthetic
from hypothesis import given
from hypothesis import strategies as st

from harness.publish.board import Board
from harness.publish.charts import altair_charts
from harness.publish.charts import svg as svg_charts
from harness.publish.charts.metric_curves import metric_curves
from harness.publish.ranking import rank as ranking

AT_4 = ("reference", "rtn-4bit-g128")


def drawn(board: Board) -> dict[str, str]:
    row = next(row for row in board.rows if row.submission.name == "ga-gdr-full")
    charts = {
        "curves": altair_charts.remaining_curves(board), "narrow": altair_charts.remaining_curves(board, narrow=True),
        "trade-off": altair_charts.trade_off(board, 4), **metric_curves(board, row),
    }  # fmt: skip
    return {name: svg for name, svg in charts.items() if svg is not None}


def test_charts_are_well_formed_named_and_the_same_every_time(board: Board) -> None:
    first, second = drawn(board), drawn(board)
    assert first == second
    assert len(first) == 7
    for svg in first.values():
        root = ElementTree.fromstring(svg)
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"]
        assert " style=" not in svg
        assert " class=" not in svg


def test_colours_follow_the_theme_in_pages_and_are_fixed_in_downloads(board: Board) -> None:
    for svg in drawn(board).values():
        outside = re.sub(r"var\(--[a-z0-9-]+, #[0-9a-f]{6}\)", "", svg)
        assert not re.search(r'(?:fill|stroke)="#', outside)
        alone = svg_charts.standalone(svg)
        assert "var(" not in alone
        ElementTree.fromstring(alone)


def test_ids_do_not_meet_in_one_page(board: Board) -> None:
    ids = [found for svg in drawn(board).values() for found in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))


def test_a_phone_gets_a_drawing_of_its_own_that_is_narrower(board: Board) -> None:
    widths = [float(re.search(r'viewBox="0 0 ([\d.]+)', svg).group(1)) for svg in list(drawn(board).values())[:2]]  # type: ignore[union-attr]
    assert widths[1] < 340 < widths[0]


def test_every_strong_entry_is_named_in_the_curves(board: Board) -> None:
    svg = altair_charts.remaining_curves(board)
    for name in altair_charts.colours(board):
        assert name in svg


def test_at_most_eight_entries_are_drawn_strongly_the_best_and_the_worst() -> None:
    entries = [
        synthetic.Plan(
            name=f"e{number:02d}", levels=dict.fromkeys(quantizers, (21 + 6 * number, 8 + 5 * number, 75, -50))
        )
        for quantizers in [("reference", "rtn-4bit-g128")]
        for number in range(12)
    ]
    crowd = ranking.rank(synthetic.cells([*synthetic.CONTROLS, *entries], quantizers=AT_4), "mini")
    chosen = altair_charts.colours(crowd)
    ranked = [row.submission.name for row in crowd.ranked(4)]
    assert len(chosen) == 8
    assert set(ranked[:4]) <= set(chosen)
    assert len(set(chosen.values())) == 8
    assert "e11" not in ranked or "e11" in chosen


def test_nothing_measured_draws_nothing() -> None:
    empty = ranking.rank([], "mini")
    assert altair_charts.remaining_curves(empty) is None
    assert altair_charts.trade_off(empty, 4) is None


def test_hostile_names_stay_text_in_charts() -> None:
    plan = synthetic.Plan(name='<script>alert("1")</script>', levels=synthetic.LORA)
    hostile = ranking.rank(synthetic.cells([*synthetic.CONTROLS, plan], quantizers=AT_4), "mini")
    for svg in (altair_charts.remaining_curves(hostile), *metric_curves(hostile, hostile.rows[0]).values()):
        assert "<script" not in svg
        ElementTree.fromstring(svg)


def test_a_corpus_name_before_every_entry_is_left_out_of_labels() -> None:
    plans = [synthetic.Plan(name=f"mini-{name}", levels=synthetic.LORA) for name in ("a-lora", "b-lora")]
    short = ranking.rank(synthetic.cells([*synthetic.CONTROLS, *plans], quantizers=("reference",)), "mini")
    assert ">a-lora<" in altair_charts.remaining_curves(short)


@given(
    st.dictionaries(st.text(max_size=3), st.floats(-2, 3), max_size=9), st.floats(0.01, 0.1),
)  # fmt: skip
def test_labels_keep_their_distance_and_their_order(heights: dict[str, float], step: float) -> None:
    placed = svg_charts.spread(heights, step, (-0.25, 1.3))
    assert set(placed) == set(heights)
    found = sorted(placed.values())
    assert all(two - one >= step - 1e-9 for one, two in itertools.pairwise(found))
    assert all(value <= 1.3 + 1e-9 for value in found)
    by_height = sorted(heights, key=lambda name: (heights[name], name))
    assert [placed[name] for name in by_height] == pytest.approx(found)


def test_a_submission_s_small_charts_have_a_dot_per_quantizer_and_line_and_name_every_line(board: Board) -> None:
    row = next(row for row in board.rows if row.submission.name == "ga-gdr-full")
    for metric, svg in metric_curves(board, row).items():
        assert svg.count("<circle") == 3 * len(board.quantizers), metric
        assert all(f">{who}</text>" in svg for who in ("entry", "target", "retrained"))
        assert all(f">{spec.name}</text>" in svg for spec in board.quantizers)


def test_a_higher_score_stands_higher_in_a_small_chart(board: Board) -> None:
    row = next(row for row in board.rows if row.submission.name == "ga-gdr-full")
    svg = metric_curves(board, row)["verbmem_f"]
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', svg)][: len(board.quantizers)]
    scores = [row.by_quantizer[spec.name].metrics["verbmem_f"].score.value for spec in board.quantizers]
    assert sorted(range(len(scores)), key=scores.__getitem__) == sorted(
        range(len(heights)), key=lambda place: -heights[place]
    )


def test_a_control_s_chart_has_its_own_line_alone(board: Board) -> None:
    row = next(row for row in board.controls if row.submission.role == "retrain")
    svg = metric_curves(board, row)["knowmem_f"]
    assert svg.count("<circle") == len(board.quantizers)
    assert ">this control</text>" in svg
    assert ">target</text>" not in svg
