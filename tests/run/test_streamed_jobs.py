"""A job whose models are read layer by layer has the rows of one that loads them whole."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness import memory, paths, quantize
from harness.cli.main import app
from harness.records import Cell, CellResult, Job, Submission
from harness.run import job, sweep
from harness.run.job import Settings, run_job
from harness.submit.manifest import load as manifest

TASKS = ("muse_mini_verbmem_f", "muse_mini_knowmem_f", "muse_mini_privleak")


@pytest.fixture(scope="module")
def shipped() -> dict[str, Submission]:
    return manifest.load_all(paths.content_dir("submissions"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "cache"))


def rows(
    shipped: dict[str, Submission], name: str, quantizer: str, mode: memory.Streaming, cache: Path,
    tasks: tuple[str, ...] = TASKS,
) -> tuple[list[CellResult], list[str]]:  # fmt: skip
    cells = tuple(Cell(submission=name, quantizer=quantizer, task=task, key=task, limit=6) for task in tasks)
    ended: list[CellResult] = []
    stages: list[str] = []
    run_job(
        Job(submission=shipped[name], spec=quantize.resolve(quantizer), cells=cells), shipped,
        Settings(cache=str(cache), cache_limit=0, stream=mode), emit=ended.append, on_stage=stages.append,
    )  # fmt: skip
    return ended, stages


@pytest.mark.parametrize(
    ("name", "quantizer"),
    [("mini-ga-gdr-lora", "rtn-4bit-g64"), ("mini-npo-gdr-full", "reference"), ("mini-target-4bit", "rtn-3bit-g64")],
)
def test_scores_documents_proof_and_survival_are_the_same_bit_for_bit(
    shipped: dict[str, Submission], tmp_path: Path, name: str, quantizer: str
) -> None:
    whole, _ = rows(shipped, name, quantizer, "never", tmp_path / "whole")
    streamed, stages = rows(shipped, name, quantizer, "always", tmp_path / "streamed")
    assert [row.reason for row in streamed] == [None] * len(TASKS)
    for one, other in zip(whole, streamed, strict=True):
        for part in ("status", "scores", "documents", "proof", "survival", "remarks"):
            assert getattr(one, part) == getattr(other, part), part
    assert all(row.documents for row in streamed)
    assert "quantize target" not in stages
    assert bool(streamed[0].survival) == (name == "mini-ga-gdr-lora")


def test_a_library_s_survival_is_measured_block_by_block(shipped: dict[str, Submission], tmp_path: Path) -> None:
    pytest.importorskip("hqq")
    one, other = (
        rows(shipped, "mini-npo-gdr-full", "hqq-4bit-g64", mode, tmp_path / mode, TASKS[:1])[0][0]
        for mode in ("never", "always")
    )
    assert (one.survival, one.scores, one.proof) == (other.survival, other.scores, other.proof)
    assert len(other.survival) > 1


def test_nothing_of_a_streamed_job_stays_in_the_cache_but_its_merge(
    shipped: dict[str, Submission], tmp_path: Path
) -> None:
    rows(shipped, "mini-ga-gdr-lora", "rtn-4bit-g64", "always", tmp_path / "cache", TASKS[:1])
    gc.collect()
    found = sorted(path.name for path in (tmp_path / "cache").iterdir() if any(path.iterdir()))
    assert found == ["merged"]


def test_no_kernel_is_probed_for_a_streamed_target(
    shipped: dict[str, Submission], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        job.kernel_check, "probe", lambda quantized, *more, **options: asked.append("probe") or quantized
    )
    for mode in ("always", "never"):
        rows(shipped, "mini-target-4bit", "rtn-4bit-g64", mode, tmp_path / mode, TASKS[:1])
        assert asked == ([] if mode == "always" else ["probe"])


def test_the_mode_ends_with_its_job(shipped: dict[str, Submission], tmp_path: Path) -> None:
    broken = {**shipped, "mini-noop-lora": replace(shipped["mini-noop-lora"], weights="nowhere")}
    ended, _ = rows(broken, "mini-noop-lora", "reference", "always", tmp_path, TASKS[:1])
    assert ended[0].status == "failed"
    assert not memory.must_stream(0, "")


@pytest.mark.parametrize(("options", "mode"), [((), "auto"), (("--stream", "always"), "always")])
def test_the_option_reaches_every_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], mode: str
) -> None:
    seen: list[Settings] = []
    monkeypatch.setattr(
        sweep, "execute", lambda plan, known, settings, **more: seen.append(settings) or Counter({"finished": 1})
    )
    asked = ["run", "mini-noop-lora", "--corpus", "mini", "--store", str(tmp_path / "s.duckdb"), *options]
    assert CliRunner().invoke(app, asked).exit_code == 0
    assert [settings.stream for settings in seen] == [mode]


def test_another_mode_is_refused() -> None:
    told = CliRunner().invoke(app, ["run", "--stream", "sometimes"])
    assert told.exit_code == 2
    assert "sometimes" in told.output
    assert "always" in told.output
