"""`quench render --watch`: a site that follows its store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli.main import app
from harness.errors import StoreError
from harness.publish.pages import watch as site_watch
from harness.store.store import Store


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets something happen at each look at the store; Ctrl-C is pressed after the last."""

    def set_up(*happens: Callable[[], object]) -> None:
        script: Iterator[Callable[[], object]] = iter(happens)

        def sleep(_: float) -> None:
            step = next(script, None)
            if step is None:
                raise KeyboardInterrupt
            step()

        monkeypatch.setattr(site_watch, "sleep", sleep)

    return set_up


def watched(store: Path, build: Callable[[], object]) -> list[str]:
    said: list[str] = []
    site_watch.watch(store, build, site_watch.state(store), say=said.append)
    return said


def test_a_site_is_built_again_after_a_change_and_only_then(tmp_path: Path, clock: Callable[..., None]) -> None:
    store, built = tmp_path / "s.duckdb", []
    store.write_text("one")
    clock(lambda: None, lambda: store.write_text("second"), lambda: None)
    assert watched(store, lambda: built.append(store.read_text())) == ["Stopped watching."]
    assert built == ["second"]


def test_what_is_not_yet_merged_into_the_store_counts_too(tmp_path: Path, clock: Callable[..., None]) -> None:
    store, built = tmp_path / "s.duckdb", []
    store.write_text("one")
    clock(lambda: (tmp_path / "s.duckdb.wal").write_text("more"), lambda: None)
    watched(store, lambda: built.append(1))
    assert built == [1]


def test_a_store_in_use_is_tried_again_and_told_of_once(tmp_path: Path, clock: Callable[..., None]) -> None:
    store, tries = tmp_path / "s.duckdb", []
    store.write_text("one")

    def build() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise StoreError("The store is in use.")

    clock(lambda: store.write_text("second"), *[lambda: None] * 4)
    assert watched(store, build) == ["Waiting: The store is in use.", "Stopped watching."]
    assert len(tries) == 3


def test_the_command_builds_watches_and_ends_quietly(tmp_path: Path, clock: Callable[..., None]) -> None:
    store, site = tmp_path / "s.duckdb", tmp_path / "site"
    with Store.open(store):
        pass
    clock()
    done = CliRunner().invoke(app, ["render", "--store", str(store), "--out", str(site), "--watch"])
    assert done.exit_code == 0, done.output
    assert (site / "index.html").is_file()
    assert "Stopped watching." in done.stderr


def test_a_missing_store_is_refused_before_anything_is_watched(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["render", "--store", str(tmp_path / "none"), "--out", str(tmp_path), "--watch"])
    assert done.exit_code == 2
    assert "There is no store" in done.stderr
