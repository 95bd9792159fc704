"""What the runner itself takes: planning many cells, a run with nothing to do, and the time around scoring.

Usage: ``python -m benchmarks.runner [--only plan|nothing|overhead]``; ``overhead`` scores muse-mini for minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from harness import paths, quantize
from harness.quantize import backend_of, calibration
from harness.records import Score, Submission
from harness.run import sweep
from harness.run.job import unfinished
from harness.run.plan import planner
from harness.store import cell_files
from harness.store.store import Store
from harness.submit.manifest import load as manifest

OVERHEAD = ("mini-target-4bit", "mini-ga-gdr-full-lr2e-4", "mini-npo-gdr-lora")
OVERHEAD_QUANTIZERS = "reference,rtn-4bit-g128,rtn-4bit-g64,bnb-nf4"


def plan_many(submissions: Mapping[str, Submission]) -> None:
    """Plans 100,000 cells: copies of the shipped submissions under 50 quantizers, four tasks each."""
    entry = submissions["mini-npo-gdr-lora"]
    many = {**submissions, **{f"copy-{number}": replace(entry, name=f"copy-{number}") for number in range(488)}}
    spec = quantize.resolve("bnb-nf4")
    specs = [replace(spec, name=f"{spec.name}-{number}") for number in range(50)]
    start = time.perf_counter()
    planned = planner.plan(many, quantizers=specs)
    print(f"plan: {planned.cells_to_do:,} cells in {time.perf_counter() - start:.2f} s")


def nothing_to_do(submissions: Mapping[str, Submission], folder: Path) -> None:
    """Runs the command line over a store that has every cell already, records included."""
    offered = [spec for spec in quantize.presets() if backend_of(spec).unavailable_reason(spec, "cpu") is None]
    names = [spec.name for spec in offered if not calibration.recipe_of(spec)][:21]
    planned = planner.plan(submissions, quantizers=[quantize.resolve(name) for name in names])
    store = folder / "full.duckdb"
    count = 0
    with Store.open(store) as opened:
        for job in planned.jobs:
            for cell in job.cells:
                row = replace(unfinished(job, cell, "finished", ""), reason=None)
                row = replace(row, scores=(Score(metric="verbmem_f", value=0.5, num_docs=32),))
                opened.add(row)
                cell_files.write(row, sweep.spool_of(store))
                count += 1
    start = time.perf_counter()
    quench("run", "--quantizers", ",".join(names), "--store", str(store))
    print(f"nothing to do: {count:,} stored cells in {time.perf_counter() - start:.2f} s, the program's start included")


def overhead(folder: Path) -> None:
    """Scores muse-mini with one worker and tells what part of the time was spent outside quantize and score."""
    store = folder / "mini.duckdb"
    quench("run", *OVERHEAD, "--no-controls", "--quantizers", OVERHEAD_QUANTIZERS, "--workers", "1", "--threads", "1",
           "--cache-limit", "0", "--tasks", "muse_mini_verbmem_f,muse_mini_knowmem_f,muse_mini_knowmem_r",
           "--store", str(store))  # fmt: skip
    (log,) = (sweep.spool_of(store) / "logs").glob("run-*.jsonl")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    times = [datetime.fromisoformat(line["at"]) for line in lines if line["event"] in {"stage", "job ended"}]
    wall = (times[-1] - times[0]).total_seconds()
    spent: dict[str, float] = defaultdict(float)
    jobs = set()
    with Store.open(store, read_only=True) as opened:
        for cell in opened.cells():
            job = (cell.cell.submission, cell.cell.quantizer)
            for stage, seconds in cell.timings.items():
                if stage == "score" or job not in jobs:
                    spent[stage] += seconds
            jobs.add(job)
    inside = spent["quantize"] + spent["quantize target"] + spent["score"]
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in sorted(spent.items()))
    print(
        f"overhead: {len(jobs)} jobs, {wall:.1f} s with warm workers; {stages}; rest {wall - sum(spent.values()):.1f}"
    )
    print(f"overhead: {100 * (wall - inside) / wall:.1f}% of the time is outside quantize and score")


def quench(*arguments: str) -> None:
    """Runs the command line as a program of its own."""
    subprocess.run([sys.executable, "-m", "harness.cli.main", *arguments], check=True, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("plan", "nothing", "overhead"))
    only = parser.parse_args().only
    submissions = manifest.load_all(paths.content_dir("submissions"))
    with tempfile.TemporaryDirectory() as folder:
        if only in (None, "plan"):
            plan_many(submissions)
        if only in (None, "nothing"):
            nothing_to_do(submissions, Path(folder))
        if only in (None, "overhead"):
            overhead(Path(folder))


if __name__ == "__main__":
    main()
