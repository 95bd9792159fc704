"""What must not move a rank, and what boards of every state say in words."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import synthetic_board as synthetic
from synthetic_board import CONTROLS, FULL, LORA, SPECS, Plan

from harness.publish.board import Board, LeaderboardRow, MetricResult, QuantizerResult, Verdict, WidthResult, WorstCase
from harness.publish.pages import index as index_page
from harness.publish.ranking import headline
from harness.publish.ranking import rank as ranking
from harness.publish.ranking.controls import Controls
from harness.publish.ranking.measurements import Measurements, primary_metric
from harness.publish.ranking.worst_case import Judged, at_width
from harness.publish.statistics.quantities import Estimate
from harness.publish.thresholds import Word
from harness.records import Cell, CellResult

TWO = ("reference", "rtn-4bit-g128")
LATER = "2027-01-01T00:00:00+00:00"
WEAK = {name: (v + 30, k + 30, u, p) for name, (v, k, u, p) in LORA.items()}
BROKEN = synthetic.flat((4, 1, 1, 9))
ENTRIES = (
    Plan(name="a-full", levels=FULL), Plan(name="b-lora", levels=LORA, kind="lora_adapter"),
    Plan(name="c-weak", levels=WEAK, kind="lora_adapter"),
)  # fmt: skip


@pytest.fixture(scope="module")
def made() -> list[CellResult]:
    return synthetic.cells([CONTROLS[0], CONTROLS[2], *ENTRIES], quantizers=TWO)


@pytest.fixture(scope="module")
def ranked(made: list[CellResult]) -> Board:
    return ranking.rank(made, "mini")


def places(board: Board, bits: int = 4) -> dict[str, tuple[int | None, int | None, Estimate | None]]:
    return {
        row.submission.name: (row.by_bits[bits].rank, row.by_bits[bits].tier, row.by_bits[bits].remaining)
        for row in board.rows
    }


def test_ranking_twice_gives_the_same_board_to_the_last_bit(made: list[CellResult], ranked: Board) -> None:
    again = ranking.rank(made, "mini")
    assert [row.by_bits for row in again.rows] == [row.by_bits for row in ranked.rows]
    assert again.bands == ranked.bands


@pytest.mark.parametrize("seed", [1, 2])
def test_shuffling_cells_and_documents_moves_no_rank_and_no_interval(
    seed: int, made: list[CellResult], ranked: Board
) -> None:
    rng = random.Random(seed)
    mixed = [replace(cell, documents=tuple(rng.sample(cell.documents, len(cell.documents)))) for cell in made]
    rng.shuffle(mixed)
    assert places(ranking.rank(mixed, "mini")) == places(ranked)


def test_other_names_change_nothing_but_the_names(made: list[CellResult], ranked: Board) -> None:
    def renamed(cell: CellResult) -> CellResult:
        new = {"a-full": "z-one", "b-lora": "y-two", "c-weak": "x-three"}.get(cell.cell.submission)
        if new is None:
            return cell
        return replace(
            cell, cell=replace(cell.cell, submission=new), submission=replace(cell.submission, name=new, title=new)
        )

    found = places(ranking.rank([renamed(cell) for cell in made], "mini"))
    assert list(found.values()) == list(places(ranked).values())


@pytest.mark.parametrize(
    "other",
    [
        Plan(name="destroyed", levels=BROKEN),
        Plan(name="never-forgot", levels=synthetic.TARGET),
        Plan(name="limited", levels=LORA, limit=4),
        Plan(name="dirty", levels=LORA, dirty=True),
        Plan(name="crashed", levels=LORA, fail=frozenset({("rtn-4bit-g128", "knowmem_f")})),
    ],
    ids=lambda plan: plan.name,
)
def test_an_entry_without_a_rank_moves_nobody_elses(other: Plan, made: list[CellResult], ranked: Board) -> None:
    board = ranking.rank([*made, *synthetic.cells([other], quantizers=TWO)], "mini")
    found = places(board)
    assert found.pop(other.name)[:2] == (None, None)
    assert found == places(ranked)
    assert board.rows[-1].submission.name == other.name
    assert board.rows[-1].by_bits[4].unranked_reason


def test_an_entry_with_the_same_scores_shares_the_tier_and_stands_beside_it(made: list[CellResult]) -> None:
    copies = [
        replace(
            cell, cell=replace(cell.cell, submission="b-twin", key=cell.cell.key[::-1]),
            submission=replace(cell.submission, name="b-twin", weights_sha256=None), survival=(),
            documents=tuple(replace(document, response=f"{document.response}.") for document in cell.documents),
        )
        for cell in made if cell.cell.submission == "b-lora"
    ]  # fmt: skip
    found = places(ranking.rank([*made, *copies], "mini"))
    assert found["b-lora"][1:] == found["b-twin"][1:]
    assert found["b-twin"][0] == found["b-lora"][0] + 1


def test_measuring_another_backend_never_lowers_what_remains_in_the_worst_case(ranked: Board) -> None:
    more = ranking.rank(synthetic.cells([CONTROLS[0], CONTROLS[2], *ENTRIES], quantizers=(*TWO, "bnb-nf4")), "mini")
    for name, (_, _, remaining) in places(ranked).items():
        now = places(more)[name][2]
        assert now is not None
        assert remaining is not None
        assert now.value >= remaining.value


def test_every_stored_number_of_an_interval_is_in_order(ranked: Board) -> None:
    for row in (*ranked.rows, *ranked.controls):
        for result in row.by_quantizer.values():
            for metric in result.metrics.values():
                for found in (metric.score, metric.change, metric.rho, metric.recovery):
                    assert found is None or found.low <= found.value <= found.high, (row.submission.name, metric)


def test_bands_of_the_controls_enclose_0_and_1(ranked: Board) -> None:
    assert {(band.bits, band.metric) for band in ranked.bands} == {
        (bits, metric) for bits in (16, 4) for metric in ("verbmem_f", "knowmem_f")
    }
    for band in ranked.bands:
        assert band.retrain_low < 0 < band.retrain_high < band.target_low < 1 < band.target_high


def test_a_board_counts_its_documents_and_how_its_cells_ended(made: list[CellResult], ranked: Board) -> None:
    assert ranked.documents == {**synthetic.DOCUMENTS, "privleak": 2 * synthetic.DOCUMENTS["privleak"]}
    cancelled = [replace(cell, status="cancelled") if number < 2 else cell for number, cell in enumerate(made)]
    assert ranking.rank(cancelled, "mini").statuses == {"cancelled": 2, "finished": len(made) - 2}


def test_measurements_answer_with_the_newest_manifest_and_the_widest_quantizer_first(made: list[CellResult]) -> None:
    first = next(cell for cell in made if cell.cell.submission == "b-lora")
    newer = replace(
        first, submission=replace(first.submission, title="New title"),
        provenance=replace(first.provenance, created_at=LATER), cell=replace(first.cell, key="0" * 64),
    )  # fmt: skip
    found = Measurements([newer, *reversed(made)], "mini")
    assert found.submissions["b-lora"].title == "New title"
    assert [spec.name for spec in found.quantizers] == list(TWO)
    assert found.cell("b-lora", "reference", "verbmem_f") == newer
    assert found.cells[-1] == newer


def test_forgetting_one_submissions_resamples_changes_no_answer(made: list[CellResult]) -> None:
    found = Measurements(made, "mini")
    before, other = (found.resampled(name, "reference", "knowmem_f") for name in ("b-lora", "a-full"))
    assert found.resampled("b-lora", "reference", "knowmem_f") is before
    found.forget("b-lora")
    again = found.resampled("b-lora", "reference", "knowmem_f")
    assert again is not before
    assert again.estimate() == before.estimate()
    assert found.resampled("a-full", "reference", "knowmem_f") is other


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": "failed", "reason": "line one\n  line two."}, "failed: line one line two"),
        ({"status": "cancelled", "reason": None}, "cancelled: no reason given"),
        ({"status": "skipped", "reason": "bnb needs a card."}, "skipped: bnb needs a card"),
        ({"scores": ()}, "has no value: no reason given"),
    ],
)
def test_a_gap_says_in_one_line_how_the_last_try_ended(
    change: dict[str, Any], said: str, made: list[CellResult]
) -> None:
    cells = [
        replace(cell, **change) if cell.cell.submission == "b-lora" and "verbmem" in cell.cell.task else cell
        for cell in made
    ]  # fmt: skip
    gap = Measurements(cells, "mini").gap("b-lora", "rtn-4bit-g128", ("verbmem_f", "knowmem_f"))
    assert gap == f"verbmem_f of b-lora under rtn-4bit-g128 {said}"


def test_what_is_not_there_at_all_is_not_measured(made: list[CellResult]) -> None:
    found = Measurements(made, "mini")
    assert found.gap("nobody", "reference", ("verbmem_f",)) == "nobody is not measured under reference"
    assert found.gap("b-lora", "reference", ("verbmem_f", "privleak")) is None
    assert not found.has_required("b-lora", "bnb-nf4")
    assert not found.is_dirty("nobody", "reference")


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("muse_mini_verbmem_f", "verbmem_f"), ("muse_news_knowmem_f", "knowmem_f"), ("x_knowmem_r", "knowmem_r"),
        ("muse_mini_privleak", "privleak"), ("muse_mini_fluency", None), ("verbmem_f", None), ("", None),
    ],
)  # fmt: skip
def test_a_tasks_metric_is_the_end_of_its_name(task: str, metric: str | None, made: list[CellResult]) -> None:
    cell = replace(made[0], cell=Cell(submission="s", quantizer="q", task=task, key="k"))
    assert primary_metric(cell) == metric


def test_controls_are_told_apart_and_an_entrys_own_choice_comes_first(made: list[CellResult]) -> None:
    controls = Controls(Measurements(made, "mini"))
    assert (controls.targets, controls.retrains) == (("mini-target-4bit",), ("mini-retrain",))
    entry = next(cell.submission for cell in made if cell.cell.submission == "b-lora")
    assert controls.of(entry) == ("mini-target-4bit", "mini-retrain")
    assert controls.of(replace(entry, retrain=None)) == ("mini-target-4bit", "mini-retrain")
    assert controls.of(replace(entry, target=None, retrain="mine")) == (None, "mine")
    assert controls.measured() == frozenset(TWO)


# Boards made by hand: only words, ranks and shares, as the sentences read them.


def row(
    name: str, word: Word, *, rank: int | None = 1, kind: str = "lora_adapter", utility: float | None = 0.9,
    rise: float = 0.0, spread: float = 0.0, bits: Sequence[int] = (4,), reason: str | None = None,
) -> LeaderboardRow:  # fmt: skip
    entry = synthetic.submission_of(Plan(name=name, levels=LORA, kind=kind), "mini")

    def result(share: float) -> MetricResult:
        return MetricResult(
            metric="verbmem_f", score=Estimate(value=0.2), rho=Estimate(value=share), recovery=Estimate(value=rise)
        )

    shares = {"rtn-4bit-g128": 0.1 + rise, "bnb-nf4": 0.1 + rise - spread}
    unknown = MetricResult(metric="knowmem_f", score=Estimate(value=0.1))
    return LeaderboardRow(
        submission=entry,
        by_quantizer={
            quantizer: QuantizerResult(
                spec=SPECS[quantizer], cells={}, verdict=Verdict(word=word),
                metrics={"verbmem_f": result(share), "knowmem_f": unknown},
            )
            for quantizer, share in shares.items()
        },
        by_bits={
            width: WidthResult(
                bits=width, quantizers=tuple(shares), verdict=Verdict(word=word), rank=rank, tier=rank,
                utility_share=None if utility is None else Estimate(value=utility), unranked_reason=reason,
                by_metric={"verbmem_f": WorstCase(quantizer="rtn-4bit-g128", result=result(0.1 + rise))},
            )
            for width in bits
        },
    )  # fmt: skip


def board_of(*rows: LeaderboardRow, bits: int = 4, widths: Sequence[int] = (16, 4)) -> Board:
    return Board(
        corpus="mini", rows=rows, controls=(), quantizers=tuple(SPECS.values()), widths=tuple(widths),
        headline_bits=bits, sentence="", detail="", documents={}, statuses={},
    )  # fmt: skip


def many(count: int, word: Word, kind: str = "lora_adapter", start: int = 1) -> list[LeaderboardRow]:
    return [row(f"{kind}-{word}-{n}", word, rank=start + n, kind=kind) for n in range(count)]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "No entry has been measured on MINI yet."),
        (
            [row("a", "holds")],
            "At 4 bit, 1 of 1 useful entry on MINI still forgets; it keeps 90% of the target's utility.",
        ),
        (
            [row("a", "holds", utility=0.8), row("b", "holds", rank=2, utility=0.95), row("c", "reverts", rank=3)],
            "At 4 bit, 2 of 3 useful entries on MINI still forget;"
            " the most useful of them keeps 95% of the target's utility.",
        ),
        ([row("a", "holds", utility=None)], "At 4 bit, 1 of 1 useful entry on MINI still forgets."),
        (
            many(2, "unclear"),
            "At 4 bit, none of the 2 useful entries on MINI provably still forgets under every backend.",
        ),
        (
            [row(name, "collapsed", rank=None, reason="utility is low.") for name in ("a", "b")],
            "At 4 bit no entry on MINI can be ranked yet: utility is low.",
        ),
        (
            [row("a", "collapsed", rank=None, reason="one"), row("b", "not measured", rank=None, reason="two")],
            "At 4 bit no entry on MINI can be ranked yet: each one's reason stands below.",
        ),
        (
            [row("a", "holds"), row("b", "holds", rank=None, reason="dirty")],
            "At 4 bit, 1 of 1 useful entry on MINI still forgets; it keeps 90% of the target's utility.",
        ),
    ],
)  # fmt: skip
def test_the_verdict_in_one_sentence(rows: list[LeaderboardRow], sentence: str) -> None:
    assert headline.sentence(board_of(*rows)) == sentence


FULL_KIND = "full_model"


@pytest.mark.parametrize(
    ("rows", "detail"),
    [
        ([], ""),
        (many(2, "never forgot"), ""),
        (many(3, "holds"), "Nothing that had been forgotten provably comes back."),
        (many(1, "reverts"), "The LoRA entry gives back what it had forgotten."),
        (many(2, "reverts", FULL_KIND), "Both full-parameter entries give back what they had forgotten."),
        (many(3, "reverts", FULL_KIND), "All three full-parameter entries give back what they had forgotten."),
        (
            [*many(2, "reverts"), *many(1, "unclear", start=3)],
            "Two of the three LoRA entries give back what they had forgotten.",
        ),
        (
            [*many(1, "reverts"), *many(11, "holds", start=2)],
            "One of the 12 LoRA entries gives back what they had forgotten.",
        ),
        (
            [*many(2, "reverts", FULL_KIND), *many(3, "holds", start=3)],
            "Both full-parameter entries give back what they had forgotten, none of the three LoRA entries does.",
        ),
        (
            [*many(1, "reverts"), *many(1, "holds", start=2), *many(1, "reverts", FULL_KIND, 3)],
            "The full-parameter entry gives back what it had forgotten, one of the two LoRA entries does.",
        ),
        (
            [*many(1, "holds"), *many(2, "reverts", FULL_KIND, 2), *many(2, "reverts", "quantized_checkpoint", 4)],
            "Both full-parameter entries give back what they had forgotten, both quantized entries do,"
            " the LoRA entry does not.",
        ),
    ],
)
def test_which_kinds_give_back_what_they_had_forgotten(rows: list[LeaderboardRow], detail: str) -> None:
    assert headline.detail(board_of(*rows)) == detail


@pytest.mark.parametrize(
    ("bits_with_a_rank", "widths", "opened"),
    [
        ((16, 8, 4), (16, 8, 4), 4),
        ((16, 8, 3), (16, 8, 4, 3), 8),
        ((3,), (16, 4, 3), 3),
        ((16,), (16, 4), 4),
        ((), (16, 4), 4),
        ((16,), (16, 8), 16),
        ((), (), 4),
    ],
)
def test_the_first_page_opens_with_the_width_of_most_interest(
    bits_with_a_rank: tuple[int, ...], widths: tuple[int, ...], opened: int
) -> None:
    assert headline.headline_bits([row("a", "holds", bits=bits_with_a_rank)], widths, 4) == opened


def price(board: Board) -> str:
    return index_page._price(board, board.headline_bits)


@pytest.mark.parametrize(
    ("said_by", "rows", "bits", "sentence"),
    [
        (index_page.finding, [], 4, "How much of the forgotten knowledge remains"),
        (index_page.finding, [row("a", "holds", bits=(16,))], 16, "How much of the forgotten knowledge remains"),
        (
            index_page.finding, [row("a", "holds", rise=0.1)], 4,
            "At 4 bit no entry's remaining share rises by more than 0.10",
        ),
        (
            index_page.finding, [row("a", "holds"), row("b", "reverts", rank=2, rise=0.7)], 4,
            "b: 0.10 of VerbMem remains at 16 bit, 0.80 under rtn-4bit-g128",
        ),
        (
            index_page.finding, [row("a\u202e", "reverts", rise=0.7)], 4,
            "a\\u202e: 0.10 of VerbMem remains at 16 bit, 0.80 under rtn-4bit-g128",
        ),
        (
            index_page.finding, [row("a", "holds"), row("broken", "collapsed", rank=None, rise=0.9)], 4,
            "At 4 bit no entry's remaining share rises by more than 0.10",
        ),
        (price, [row("a", "reverts")], 4, "At 4 bit no useful entry provably holds"),
        (
            price, [row("a", "holds", utility=0.914)], 4,
            "At 4 bit the entry that holds keeps 91% of the target's utility",
        ),
        (
            price,
            [row("a", "holds", utility=0.8), row("b", "holds", rank=2, utility=0.95)], 4,
            "At 4 bit entries that hold keep 80% to 95% of the target's utility",
        ),
        (
            price,
            [row("a", "holds", utility=0.901), row("b", "holds", rank=2, utility=0.899)], 4,
            "At 4 bit entries that hold keep 90% of the target's utility",
        ),
        (index_page._backends_title, [row("a", "holds", spread=0.05)], 4, "Every backend"),
        (index_page._backends_title, [], 4, "Every backend"),
        (
            index_page._backends_title, [row("a", "reverts", rise=0.7, spread=0.6)], 4,
            "4 bit is not one condition: of VerbMem, a has 0.20 left under bnb-nf4, 0.80 under rtn-4bit-g128",
        ),
    ],
)  # fmt: skip
def test_headings_of_the_first_page_state_the_finding(
    said_by: Callable[[Board], str], rows: list[LeaderboardRow], bits: int, sentence: str
) -> None:
    assert said_by(board_of(*rows, bits=bits)) == sentence


# One entry at one width, judged by hand.


def judged(**by_quantizer: dict[str, Any]) -> Judged:
    results = {}
    for name, given in by_quantizer.items():
        quantizer = name.replace("_", "-")
        metrics = {
            metric: MetricResult(metric=metric, score=Estimate(value=given.get(metric, 0.1)))
            for metric in ("verbmem_f", "knowmem_f", "knowmem_r", "privleak")
        }
        for metric, share in given.get("rho", {}).items():
            metrics[metric] = replace(metrics[metric], rho=Estimate(value=share))
        results[quantizer] = QuantizerResult(
            spec=SPECS[quantizer], cells={}, metrics=metrics, dirty=given.get("dirty", False),
            verdict=Verdict(word=given.get("word", "holds"), reason=given.get("reason", "")),
            missing=given.get("missing"), utility_share=Estimate(value=given.get("utility", 0.9)),
        )  # fmt: skip
    entry = synthetic.submission_of(Plan(name="hand", levels=LORA), "mini")
    return Judged(submission=entry, by_quantizer=results, draws={"rtn-4bit-g128": None, "bnb-nf4": None})  # type: ignore[dict-item]


GOOD = {"rho": {"verbmem_f": 0.1, "knowmem_f": 0.2}}
NEVER = {"rho": {"verbmem_f": 0.9, "knowmem_f": 0.8}, "word": "never forgot"}
AT_4 = ("rtn-4bit-g128", "bnb-nf4")


def test_worst_cases_of_knowledge_utility_and_privacy_may_lie_under_different_backends() -> None:
    found = at_width(
        judged(
            reference=GOOD,
            rtn_4bit_g128={"rho": {"verbmem_f": 0.5, "knowmem_f": 0.1}, "utility": 0.9, "privleak": -20},
            bnb_nf4={"rho": {"verbmem_f": 0.2, "knowmem_f": 0.4}, "utility": 0.8, "privleak": 30},
        ), 4, AT_4,
    )  # fmt: skip
    assert (found.quantizer, found.metric, found.remaining.value) == ("rtn-4bit-g128", "verbmem_f", 0.5)
    assert {metric: case.quantizer for metric, case in found.by_metric.items()} == {
        "verbmem_f": "rtn-4bit-g128", "knowmem_f": "bnb-nf4",
    }  # fmt: skip
    assert (found.utility_quantizer, found.utility_share.value) == ("bnb-nf4", 0.8)
    assert (found.privleak_quantizer, found.privleak.value) == ("bnb-nf4", 30)
    assert found.unranked_reason is None


@pytest.mark.parametrize(
    ("rtn", "nf4", "reason"),
    [
        (GOOD, GOOD, None),
        (GOOD, {**GOOD, "dirty": True}, "made from a tree with uncommitted changes, its own or a control's"),
        (GOOD, {**GOOD, "missing": "hand is not measured under bnb-nf4"}, "hand is not measured under bnb-nf4"),
        (
            {**GOOD, "word": "collapsed", "reason": "utility is 0.1"}, {**GOOD, "dirty": True},
            "rtn-4bit-g128: utility is 0.1",
        ),
        (NEVER, NEVER, "it had not forgotten at 16 bit: 0.10 of VerbMem remains, 0.20 of KnowMem remains"),
        ({**GOOD, "dirty": True}, {**GOOD, "missing": "absent"}, "made from a tree with uncommitted changes"),
    ],
)  # fmt: skip
def test_of_several_reasons_against_a_rank_the_gravest_is_given(
    rtn: dict[str, Any], nf4: dict[str, Any], reason: str | None
) -> None:
    found = at_width(judged(reference=GOOD, rtn_4bit_g128=rtn, bnb_nf4=nf4), 4, AT_4).unranked_reason
    assert found is None if reason is None else found.startswith(reason)


@pytest.mark.parametrize(
    ("expected", "missing", "reason"),
    [
        (AT_4, "gone", "gone"),
        ((), "gone", "gone"),
        ((), None, "not measured at 4 bit"),
    ],
)
def test_an_entry_with_nothing_at_a_width_is_not_measured_there(
    expected: tuple[str, ...], missing: str | None, reason: str
) -> None:
    given = {**GOOD, "missing": missing}
    found = at_width(judged(reference=GOOD, rtn_4bit_g128=given, bnb_nf4=given), 4, expected)
    assert (found.verdict.word, found.unranked_reason, found.verdict.reason) == ("not measured", reason, reason)
    assert (found.quantizers, found.remaining, found.by_metric) == ((), None, {})
