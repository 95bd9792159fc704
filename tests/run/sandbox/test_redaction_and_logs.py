"""Secrets never stand in a log, and a run's log is one line of JSON for each event."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jobs_without_models import make_job

from harness.run.executors.local import Event
from harness.run.job import unfinished
from harness.run.progress.run_log import RunLog
from harness.run.sandbox.redaction import HIDDEN, forget_secrets, redact, redact_file


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("token hf_AbCdEfGhIjKlMnOp refused", f"token {HIDDEN} refused"),
        ("Authorization: Bearer abc.def-ghi_jkl", f"Authorization: Bearer {HIDDEN}"),
        ("{'authorization': 'Basic dXNlcjpwYXNz', 'x': 1}", f"{{'authorization': 'Basic {HIDDEN}', 'x': 1}}"),
        ("sent Bearer eyJhbGciOiJIUzI1NiJ9 along", f"sent Bearer {HIDDEN} along"),
        ("https://user:pa55word@example.org/x", f"https://user:{HIDDEN}@example.org/x"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, left: str) -> None:
    assert redact(text) == left


@pytest.mark.parametrize(
    "text",
    ["hf_hub_url is a function", "12:30:00 began", "the tokenizer has 1024 tokens", "https://example.org:80/a@b"],
)
def test_what_only_resembles_a_secret_is_left_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_values_of_secret_variables_are_hidden_also_after_a_worker_has_forgotten_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_HUB_TOKEN", "correct horse battery")
    monkeypatch.setenv("SHORT_TOKEN", "1")
    assert redact("it was correct horse battery, 1 time") == f"it was {HIDDEN}, 1 time"
    forget_secrets()
    assert redact("it was correct horse battery") == f"it was {HIDDEN}"


def test_a_log_file_is_redacted_in_place_and_other_bytes_stay(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"caf\xe9 hf_AbCdEfGhIjKlMnOp\n")
    redact_file(log)
    assert log.read_bytes() == b"caf\xe9 " + HIDDEN.encode() + b"\n"
    redact_file(tmp_path / "none.log")


def test_a_run_s_log_tells_each_event_as_json_without_secrets(tmp_path: Path) -> None:
    job = make_job()
    with RunLog.begin(tmp_path, jobs=1) as log:
        log.take(Event(job=job, stage="quantize"))
        row = unfinished(job, job.cells[0], "failed", "hf_AbCdEfGhIjKlMnOp was refused", stage="fetch")
        log.take(Event(job=job, result=row))
        log.take(Event(job=job, job_ended=True))
    (path,) = (tmp_path / "logs").glob("run-*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["began", "stage", "cell", "job ended"]
    assert lines[0]["jobs"] == 1
    assert lines[2]["reason"] == f"{HIDDEN} was refused"
    assert (lines[2]["submission"], lines[2]["task"]) == (job.submission.name, job.cells[0].task)
    assert "error_type" not in lines[2], "what is not known takes no room"


def test_a_run_that_breaks_off_says_so_in_its_log(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="why"), RunLog.begin(tmp_path):
        raise ValueError("why")
    (path,) = (tmp_path / "logs").glob("run-*.jsonl")
    assert json.loads(path.read_text().splitlines()[-1])["error_type"] == "ValueError"
