"""What a plan is expected to take, from the nearest cells that have run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jobs_without_models import TASKS, make_job, make_submission

from harness.records import Submission
from harness.run.job import unfinished
from harness.run.plan import cost_estimates
from harness.store.store import Store


def past(submission: str = "some-entry", quantizer: str = "reference", task: str = TASKS[0], **changes: Any) -> Any:
    took: dict[str, Any] = {
        "submission": submission, "quantizer": quantizer, "task": task, "document_limit": None, "device": "cpu",
        "timings": {"score": 10.0, "quantize": 3.0, "intake": 1.0}, "peak_memory_bytes": 2**30,
    }  # fmt: skip
    return {**took, **changes}


def with_weights(tmp_path: Path, name: str, size: int) -> Submission:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(size))
    return make_submission(name, weights=str(folder))


def test_the_same_cells_tell_time_and_memory(tmp_path: Path) -> None:
    known = {"some-entry": with_weights(tmp_path, "some-entry", 1000)}
    cells = [past(task=task) for task in TASKS] + [past(timings={"score": 12.0, "quantize": 5.0, "intake": 1.0})] * 2
    (cost,) = cost_estimates.estimate([make_job()], known, cells, device="cpu")
    # The start of a worker, 6 s before scoring, once for both tasks, and medians of 12 and 10 s.
    assert cost.seconds == 1 + 6 + 12 + 10
    assert cost.memory_bytes == 2**30
    assert cost.basis == "same cells"


def test_other_submissions_tell_by_the_ratio_of_their_weights(tmp_path: Path) -> None:
    known = {"big": with_weights(tmp_path, "big", 4000), "small": with_weights(tmp_path, "small", 1000)}
    (cost,) = cost_estimates.estimate(
        [make_job("big")], known, [past("small", task=task) for task in TASKS], device="cpu"
    )
    assert cost.seconds == 1 + 4 * (4 + 10 + 10)
    assert cost.basis == "same quantizer and task"
    assert (cost.memory_bytes or 0) > 2**30


def test_another_quantizer_is_the_next_best_and_the_worst_basis_is_told(tmp_path: Path) -> None:
    known = {"some-entry": with_weights(tmp_path, "some-entry", 1000)}
    cells = [past(quantizer="bnb-nf4"), past(quantizer="bnb-nf4", task=TASKS[1])]
    (cost,) = cost_estimates.estimate([make_job()], known, cells, device="cpu")
    assert (cost.seconds, cost.basis) == (25.0, "same task")
    (cost,) = cost_estimates.estimate([make_job()], known, cells[:1], device="cpu")
    assert cost.basis == "size of weights"


def test_cells_of_another_limit_tell_nothing(tmp_path: Path) -> None:
    known = {"some-entry": with_weights(tmp_path, "some-entry", 1000)}
    (cost,) = cost_estimates.estimate([make_job()], known, [past(document_limit=4)], device="cpu")
    assert cost.basis == "size of weights"


def test_without_past_cells_larger_weights_take_longer_and_a_gpu_less_long(tmp_path: Path) -> None:
    known = {"big": with_weights(tmp_path, "big", 4_000_000), "small": with_weights(tmp_path, "small", 1_000_000)}
    jobs = [make_job("big"), make_job("small")]
    big, small = cost_estimates.estimate(jobs, known, [], device="cpu")
    on_a_card, _ = cost_estimates.estimate(jobs, known, [], device="cuda")
    assert (big.seconds or 0) > (small.seconds or 0) > (on_a_card.seconds or 0)
    assert (big.memory_bytes or 0) > (small.memory_bytes or 0)


def test_an_adapter_counts_with_its_base_and_a_model_on_a_hub_is_unknown(tmp_path: Path) -> None:
    base = with_weights(tmp_path, "base", 1000)
    adapter = replace(with_weights(tmp_path, "adapter", 10), kind="lora_adapter", base_model="base")
    known = {"base": base, "adapter": adapter, "far": make_submission("far", weights="hf://owner/name")}
    assert cost_estimates.weights_bytes(adapter, known) == 1010
    (cost,) = cost_estimates.estimate([make_job("far")], known, [], device="cpu")
    assert (cost.seconds, cost.disk_bytes, cost.basis) == (None, None, "nothing known")
    assert {cost.as_row()[column] for column in ("time", "memory", "disk")} == {"unknown"}
    assert cost_estimates.total([cost]) == "what 1 jobs take is unknown: their weights are on a hub and not here"
    near = cost_estimates.estimate([make_job("base")], known, [], device="cpu")
    assert cost_estimates.total([cost, *near]).endswith(" of memory, at least 0 MB of disk and 1 jobs of unknown size")


def test_a_model_of_unknown_size_is_not_said_to_take_what_another_took() -> None:
    known = {"far": make_submission("far", weights="hf://owner/name"), "some-entry": make_submission("some-entry")}
    cells = [past(task=task) for task in TASKS]
    (cost,) = cost_estimates.estimate([make_job("far")], known, cells, device="cpu")
    assert (cost.seconds, cost.memory_bytes, cost.disk_bytes) == (None, None, None)
    own = [past("far", task=task) for task in TASKS]
    (cost,) = cost_estimates.estimate([make_job("far")], known, own, device="cpu")
    assert (cost.basis, cost.disk_bytes, cost.as_row()["disk"]) == ("same cells", None, "unknown")


def test_a_model_of_a_hub_whose_files_are_listed_here_has_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path))
    commit = "a" * 40
    far = make_submission("far", weights="hf://owner/name", revision=commit)
    on_it = make_submission("on-it", kind="lora_adapter", weights="hf://owner/lora", revision=commit,
                            base_model="hf://owner/name", base_revision=commit)  # fmt: skip
    for place, name, size in (("hub-previews", "name", 1000), ("hub", "lora", 10)):
        folder = tmp_path / place / f"owner--{name}-{commit}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(size))
    assert cost_estimates.weights_bytes(far, {}) == 1000
    assert cost_estimates.weights_bytes(on_it, {}) == 1010


def test_the_total_adds_time_and_disk_and_takes_the_largest_memory() -> None:
    cost = cost_estimates.Cost(seconds=3000.0, memory_bytes=2**30, disk_bytes=2**29, basis="same cells")
    told = cost_estimates.total([cost, replace(cost, memory_bytes=2**31, seconds=6000.0)])
    assert told == "about 2.5 h one job at a time, 2.0 GB of memory, 1.0 GB of disk"
    assert cost_estimates.total([]) == "nothing to run"


def test_more_memory_than_is_free_is_told_with_what_a_run_does_about_it() -> None:
    cost = cost_estimates.Cost(seconds=60.0, memory_bytes=2**32, disk_bytes=2**29, basis="size of weights")
    assert cost_estimates.total([cost], free=2**32) == cost_estimates.total([cost])
    told = cost_estimates.total([cost], free=2**31)
    assert told.endswith("; 2.0 GB of memory are free here: a model that does not fit is read layer by layer, slower")


def test_free_memory_is_known_of_this_machine_alone_and_not_without_what_measures_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (cost_estimates.free_memory("cpu") or 0) > 2**20
    assert cost_estimates.free_memory("cuda") is None
    monkeypatch.setattr(cost_estimates, "find_spec", lambda name: None)
    assert cost_estimates.free_memory("cpu") is None


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_only_finished_cells_of_a_store_are_the_past(tmp_path: Path, status: Any) -> None:
    job, store = make_job(), tmp_path / "s.duckdb"
    assert cost_estimates.past_costs(store) == []
    with Store.open(store) as opened:
        row = unfinished(job, job.cells[0], status, "why")
        opened.add(replace(row, timings={"score": 2.5}, peak_memory_bytes=7))
    found = cost_estimates.past_costs(store)
    assert [(row["timings"], row["peak_memory_bytes"]) for row in found] == (
        [({"score": 2.5}, 7)] if status == "finished" else []
    )
