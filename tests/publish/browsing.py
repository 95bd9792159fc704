"""A visit to the built site in a real Chromium."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
PAGES = (
    "index.html", "cells.html", "methodology.html", "published.html", "compare.html", "submit.html",
    "submission/ga-gdr-full.html", "submission/mini-retrain.html", "submission/ga-gdr-full-documents.html",
    "quantizer/rtn-4bit-g128.html", "quantizer/reference.html",
)  # fmt: skip
"""Every kind of page, and those whose content differs most."""
OPEN = "section.width:not([hidden])"
"""The one width that is open."""


class Visit:
    """One page in a context of its own, with everything that went wrong in it."""

    def __init__(self, context: Any, site: Path) -> None:
        self.site, self.page = site, context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def go(self, name: str, fragment: str = "") -> Any:
        self.page.goto(f"{(self.site / name).as_uri()}{fragment}")
        return self.page

    def unfold(self) -> None:
        self.page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")

    def hangs_over(self) -> int:
        """Returns by how many pixels the page is wider than its window."""
        over: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return over

    def names(self, table: str = f"{OPEN} table.sortable") -> list[str]:
        rows = self.page.locator(f"{table} tbody tr:not([hidden]) th bdi").all_inner_texts()
        return [name for name in rows if "+" not in name and name.islower()]
