"""Every built page before html-validate, which `make test-all` installs with npm."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parents[3] / "build" / "node" / "node_modules" / ".bin" / "html-validate"

RULES = {
    "extends": ["html-validate:standard"],
    "rules": {
        # Matters of taste: how a template lays out its lines and spells what needs no spelling out.
        "attribute-boolean-style": "off",
        "no-trailing-whitespace": "off",
        "void-style": "off",
        "long-title": "off",
        "no-implicit-button-type": "error",
        "no-inline-style": "error",
        "unique-landmark": "error",
    },
}  # fmt: skip


def complaints(pages: list[Path], folder: Path) -> list[str]:
    (folder / "rules.json").write_text(json.dumps(RULES), encoding="utf-8")
    ended = subprocess.run(
        [str(PROGRAM), "--config", str(folder / "rules.json"), "--formatter", "json", *map(str, pages)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert ended.stdout.startswith("["), ended.stderr
    return [
        f"{Path(report['filePath']).name}:{message['line']}: {message['ruleId']}: {message['message']}"
        for report in json.loads(ended.stdout)
        for message in report["messages"]
    ]


@pytest.fixture(autouse=True)
def _program() -> None:
    if not PROGRAM.exists() or shutil.which("node") is None:
        pytest.skip("html-validate is not installed: `make test-all` does it where npm is")


def test_every_page_is_valid(site: Path, tmp_path: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 10
    assert complaints(pages, tmp_path) == []


def test_a_page_that_is_not_valid_is_told(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!DOCTYPE html><html lang=en><title>t</title><p><div>x</div></p><p id=a>1<p id=a>2</html>")
    assert any("no-dup-id" in fault for fault in complaints([page], tmp_path))
