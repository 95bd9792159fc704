"""Properties of cutting work into batches, of shared beginnings, and of stop strings, over many inputs."""

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import ScoringError
from harness.score.model.batching import CACHED_TOKENS, CPU_TOKENS, DEFAULT_TOKENS, Batches, chunks
from harness.score.model.generation import _shared_length
from harness.score.model.language_model import StopStrings

LENGTHS = st.lists(st.integers(0, 90), max_size=40)


@given(lengths=LENGTHS, tokens=st.integers(1, 200), max_rows=st.none() | st.integers(1, 6))
def test_every_row_is_worked_once_within_budget_and_limit_and_comes_back_in_its_place(lengths, tokens, max_rows):
    seen = []

    def work(rows):
        seen.append(list(rows))
        return [f"result {row}" for row in rows]

    found = Batches(tokens=tokens, max_rows=max_rows).run(lengths, work)
    assert found == [f"result {row}" for row in range(len(lengths))]
    assert sorted(row for rows in seen for row in rows) == list(range(len(lengths)))
    for rows in seen:
        assert len(rows) == 1 or len(rows) * max(1, max(lengths[row] for row in rows)) <= tokens
        assert len(rows) <= (max_rows or len(rows))
    flat = [lengths[row] for rows in seen for row in rows]
    assert flat == sorted(flat, reverse=True)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30), room=st.integers(60, 300))
def test_a_device_with_room_for_the_longest_text_gets_all_of_them_done(lengths, room):
    """Whatever the room, halving finds a batch that fits, and no result is lost on the way."""
    sizes = []

    def work(rows):
        if len(rows) * max(lengths[row] for row in rows) > room:
            raise RuntimeError("Out Of Memory")
        sizes.append(len(rows))
        return rows

    reports = []
    batches = Batches()
    assert batches.run(lengths, work, lambda *report: reports.append(report)) == list(range(len(lengths)))
    assert batches.tokens <= DEFAULT_TOKENS
    assert [done for done, _ in reports] == [sum(sizes[: number + 1]) for number in range(len(sizes))]
    assert {total for _, total in reports} == {len(lengths)}


def test_a_budget_that_was_halved_stays_so_for_the_next_run():
    def work(rows):
        if len(rows) > 2:
            raise RuntimeError("not enough memory: you tried to allocate")
        return rows

    batches = Batches(tokens=80)
    batches.run([10] * 8, work)
    assert batches.tokens == 20
    seen = []
    batches.run([10] * 5, lambda rows: seen.append(len(rows)) or rows)
    assert seen == [2, 2, 1]


def test_the_text_that_does_not_fit_is_named_by_its_length_also_after_others_did():
    def work(rows):
        if len(rows) > 1 or rows == [1]:
            raise RuntimeError("CUDA out of memory")
        return rows

    with pytest.raises(ScoringError, match="one text of 44 tokens: use a larger device"):
        Batches().run([70, 44, 3], work)


@pytest.mark.parametrize("answers", [[], ["one"], ["one", "two", "three"]])
def test_work_that_loses_or_invents_a_result_is_noticed(answers):
    with pytest.raises(ValueError, match="zip"):
        Batches().run([5, 5], lambda rows: answers)


def test_no_rows_need_no_work_and_report_nothing():
    reports = []
    assert Batches().run([], lambda rows: pytest.fail("nothing to do"), lambda *report: reports.append(report)) == []
    assert reports == []


def test_plain_passes_on_a_cpu_begin_with_the_smaller_budget(models, tokenizer):
    from harness.score.model.language_model import QuenchLM

    lm = QuenchLM(models["llama"], tokenizer)
    assert lm.texts._batches.tokens == CACHED_TOKENS < CPU_TOKENS == lm._generate._batches.tokens


@given(total=st.integers(0, 60), size=st.integers(1, 70))
def test_chunks_cover_a_range_without_gap_or_overlap(total, size):
    parts = list(chunks(total, size))
    assert [number for part in parts for number in range(part.start, part.stop)] == list(range(total))
    assert all(0 < part.stop - part.start <= size for part in parts)
    assert all(one.stop == other.start for one, other in pairwise(parts))


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=6))
def test_the_shared_length_is_the_longest_common_beginning_that_leaves_each_a_token(prompts):
    expected = 0
    while all(len(prompt) > expected + 1 for prompt in prompts) and len({prompt[expected] for prompt in prompts}) == 1:
        expected += 1
    assert _shared_length(prompts) == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(ids=st.lists(st.integers(3, 359), max_size=24))
def test_a_row_stops_at_the_very_token_that_completes_a_stop_string(bare_tokenizer, ids):
    """Any tokens at all, pieces of characters among them; special tokens (ids below 3) write nothing."""
    strings = ("ri", "e ", "\n\n", "Question:")
    stop = StopStrings(bare_tokenizer, strings)
    for count in range(len(ids) + 1):
        text = bare_tokenizer.decode(ids[:count], skip_special_tokens=True)
        complete = any(string in text for string in strings)
        assert stop([ids[:count]]) == [complete]
        if complete:
            break


def test_rows_are_judged_one_by_one(bare_tokenizer):
    """lm-eval's own criterion ends a batch only when every row has hit the same string."""
    stop = StopStrings(bare_tokenizer, ["\n\n", "Question:"])
    rows = [bare_tokenizer(text)["input_ids"] for text in ("a\n\n", "a", "Question:", "Question", "b\n")]
    assert stop(rows) == [True, False, True, False, False]
    assert [stop([row])[0] for row in rows] == stop(rows)
