"""How long the pages of boards of 1, 8, 100 and 1,000 entries take, and what their first page weighs.

The boards are the tests' synthetic ones: ten quantizers, four metrics, as many documents as muse-mini has; with 1,000
entries two quantizers and a tenth of the documents. Each board is built in a process of its own, first without and
then with the drawings of the last build; scripts and styles count as much as the page. First paint is that of Chromium
with a CPU four times slower and a fast 3G line, where playwright is installed.

Usage: ``python -m benchmarks.site [--entries 1 8 100 1000]``.
"""

from __future__ import annotations

import argparse
import gzip
import http.server
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "publish")]

import synthetic_board as synthetic  # noqa: E402 - found through the path above

from harness.publish.pages import site as site_pages  # noqa: E402
from harness.store.store import Store  # noqa: E402

MORE = {"bnb-fp4": "bnb-nf4", "hqq-4bit-g64": "rtn-4bit-g64", "hqq-3bit-g64": "rtn-3bit-g128"}
LIMITS = {"build": 30.0, "bytes": 500_000, "paint": 1.0}
"""Seconds, bytes and seconds that a board of 100 entries may take."""
VISITS = 5
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]"


def plans(entries: int) -> list[synthetic.Plan]:
    """Returns controls and entries, no two with the same levels."""
    for name, like in MORE.items():
        synthetic.SPECS[name] = replace(synthetic.SPECS[like], name=name, backend=name.split("-")[0])
    kinds = (("full_model", synthetic.FULL), ("lora_adapter", synthetic.LORA))
    made = [*synthetic.CONTROLS]
    for number in range(entries):
        kind, levels = kinds[number % 2]
        moved = {name: (v + number % 7, k + number % 11, u - number % 5, p) for name, (v, k, u, p) in levels.items()}
        made.append(synthetic.Plan(name=f"entry-{number:04d}", levels=moved, kind=kind))
    return [
        replace(plan, levels={**plan.levels, **{name: plan.levels[like] for name, like in MORE.items()}})
        for plan in made
    ]


def fill(store: Path, entries: int) -> int:
    """Writes the store of a board and returns how many cells it has."""
    made = plans(entries)
    quantizers = tuple(synthetic.SPECS)
    if entries > 100:
        quantizers = ("reference", "rtn-4bit-g128")
        synthetic.DOCUMENTS.update({name: count // 10 for name, count in synthetic.DOCUMENTS.items()})
    count = 0
    with Store.open(store) as opened:
        for plan in made:
            for cell in synthetic.cells([plan], quantizers=quantizers):
                opened.add(cell)
                count += 1
    return count


def build(store: Path, out: Path) -> None:
    """Builds the pages and prints the seconds and the peak memory as JSON."""
    start, cpu = time.perf_counter(), time.process_time()
    site_pages.render(store, out)
    used = {who: resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)}
    print(json.dumps({
        "seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu,
        "peak_mb": max(used.values()) * 1024 / 1e6,
    }))  # fmt: skip


def weight(site: Path) -> tuple[int, int]:
    """Returns the bytes of the first page with its scripts and styles, as they are and compressed."""
    parts = [site / "index.html", *sorted((site / "static").glob("quench.*"))]
    return sum(part.stat().st_size for part in parts), sum(len(gzip.compress(part.read_bytes(), 6)) for part in parts)


class _Compressed(http.server.SimpleHTTPRequestHandler):
    """Serves a site as any web server would: compressed."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        body = gzip.compress(path.read_bytes(), 6)
        self.send_response(200)
        for name, value in (("Content-Type", self.guess_type(str(path))), ("Content-Encoding", "gzip"),
                            ("Content-Length", str(len(body)))):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def first_paint(site: Path) -> list[float] | None:
    """Returns the seconds until a throttled phone shows something, per visit; None without playwright and Chromium."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if chromium is None:
        return None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Compressed, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with sync_playwright() as playwright:
            address = f"http://127.0.0.1:{server.server_address[1]}/index.html"
            return sorted(_visit(playwright.chromium, chromium, address) for _ in range(VISITS))
    finally:
        server.shutdown()


def _visit(browsers: Any, chromium: str, address: str) -> float:
    """Returns the seconds to first paint in a browser that has seen nothing yet."""
    browser = browsers.launch(executable_path=chromium, args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 360, "height": 780})
    devtools = page.context.new_cdp_session(page)
    devtools.send("Network.enable")
    line = {"offline": False, "latency": 150, "downloadThroughput": 200_000, "uploadThroughput": 90_000}
    devtools.send("Network.emulateNetworkConditions", line)
    devtools.send("Emulation.setCPUThrottlingRate", {"rate": 4})
    page.goto(address)
    # A small page has loaded before the browser draws its first frame.
    page.wait_for_function(f"{PAINT} !== undefined")
    painted: float = page.evaluate(f"{PAINT}.startTime")
    browser.close()
    return painted / 1000


def measure(entries: int, folder: Path) -> dict[str, Any]:
    """Returns every figure of one board."""
    store, site = folder / f"{entries}.duckdb", folder / f"site-{entries}"
    cells = fill(store, entries)
    environment = {**os.environ, "QUENCH_CACHE": str(folder / f"cache-{entries}"), "SOURCE_DATE_EPOCH": "1700000000"}
    found = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.site", "--build", str(store), str(site)],
            env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        found.append(json.loads(done.stdout))
    raw, packed = weight(site)
    return {
        "entries": entries, "cells": cells, "cold": found[0], "warm": found[1], "raw": raw, "packed": packed,
        "paint": first_paint(site),
    }  # fmt: skip


def verdict(value: float | None, limit: float, unit: str) -> str:
    """Returns whether a limit is met, and by how much it is missed where it is not."""
    if value is None:
        return "not measured"
    return "met" if value <= limit else f"missed by {value - limit:,.1f} {unit}"


def row(found: dict[str, Any]) -> str:
    """Returns one line of the table."""
    visits = found["paint"]
    paint = "not measured" if visits is None else f"{median(visits):.2f} ({visits[0]:.2f} to {visits[-1]:.2f})"
    cold, warm = found["cold"], found["warm"]
    return (
        f"| {found['entries']:,} | {found['cells']:,} | {cold['seconds']:.1f} ({cold['cpu']:.1f}) "
        f"| {warm['seconds']:.1f} ({warm['cpu']:.1f}) | {cold['peak_mb']:,.0f} "
        f"| {found['packed'] / 1000:,.0f} ({found['raw'] / 1000:,.0f}) | {paint} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, nargs="+", default=[1, 8, 100, 1000])
    parser.add_argument("--build", type=Path, nargs=2, metavar=("STORE", "OUT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.build:
        build(*asked.build)
        return
    print("| entries | cells | build, s (CPU-s) | again, s (CPU-s) | peak MB | page, KB (raw) | paint of 5 visits, s |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for entries in asked.entries:
            found = measure(entries, Path(folder))
            print(row(found), flush=True)
            if entries == 100:
                told = (
                    f"build under 30 s: {verdict(found['cold']['seconds'], LIMITS['build'], 's')}; "
                    f"first page under 500 KB: {verdict(found['packed'] / 1000, LIMITS['bytes'] / 1000, 'KB')}; "
                    f"paint under 1 s: {verdict(found['paint'] and median(found['paint']), LIMITS['paint'], 's')}"
                )
    if 100 in asked.entries:
        print(f"\nLimits at 100 entries: {told}.")


if __name__ == "__main__":
    main()
