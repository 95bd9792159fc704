"""Jobs to run, without models: what the executor and planner need to be told."""

from __future__ import annotations

from harness.quantize import resolve
from harness.records import Cell, Job, Submission

TASKS = ("muse_mini_verbmem_f", "muse_mini_knowmem_f")


def make_submission(name: str = "some-entry", *, folder: str = "", **changes: object) -> Submission:
    fields: dict[str, object] = {
        "name": name, "title": name, "method": "GA", "corpus": "mini", "kind": "full_model", "role": "entry",
        "target": None, "retrain": None, "base_model": None, "base_revision": None, "weights": f"{folder}/weights",
        "revision": None, "weights_sha256": None, "folder": folder,
    }  # fmt: skip
    return Submission(**{**fields, **changes})  # type: ignore[arg-type]


def make_job(name: str = "some-entry", quantizer: str = "reference") -> Job:
    cells = tuple(
        Cell(submission=name, quantizer=quantizer, task=task, key=f"{name}-{quantizer}-{task}") for task in TASKS
    )
    return Job(submission=make_submission(name), spec=resolve(quantizer), cells=cells)
