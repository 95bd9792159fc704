"""The cache shows what it holds, drops what it is told to, and leaves what is in use."""

import json
import os

import pytest
from typer.testing import CliRunner

from harness.cli.main import app
from harness.errors import InputError
from harness.run.maintenance import cache as cache_folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Two quantized models of 3 MB (one older), a merged one, and scratch of today and of last week."""
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path))
    for name, size in {
        "quantized/old": 3, "quantized/new": 3, "merged/one": 1, "quantizing-today": 1, "quantizing-stale": 2,
        "merged/.writing-stale": 1,
    }.items():  # fmt: skip
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "weights").write_bytes(bytes(size * 2**20))
        if name.endswith(("old", "stale")):
            os.utime(tmp_path / name, (1000, 1000))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["cache", *arguments])


def test_every_kind_is_shown_with_its_entries_and_bytes(cache):
    done = run("--json")
    assert done.exit_code == 0
    rows = {row["kind"]: row for row in json.loads(done.stdout)["rows"]}
    assert list(rows) == list(cache_folder.KINDS)
    assert (rows["quantized"]["entries"], rows["quantized"]["bytes"]) == (2, 6 * 2**20)
    assert (rows["merged"]["entries"], rows["merged"]["MB"]) == (1, 1.0)
    assert (rows["left over"]["entries"], rows["left over"]["MB"]) == (2, 3.0)
    assert rows["hub"]["entries"] == 0
    assert "quantized models, read back" in run().stdout


def test_clearing_a_kind_removes_that_kind_alone_and_scratch_of_today_stays(cache):
    done = run("clear", "left over", "merged")
    assert "Freed 4.0 MB" in done.output
    assert not (cache / "merged" / "one").exists()
    assert not (cache / "quantizing-stale").exists()
    assert not (cache / "merged" / ".writing-stale").exists()
    assert (cache / "quantizing-today").is_dir()
    assert (cache / "quantized" / "old").is_dir()


def test_trimming_drops_the_least_recently_used_model(cache):
    assert "Freed 3.0 MB" in run("trim", "--to", "4MB").output
    assert not (cache / "quantized" / "old").exists()
    assert (cache / "quantized" / "new").is_dir()
    assert (cache / "merged" / "one").is_dir()


def test_an_unknown_kind_and_a_size_that_is_none_are_refused_in_one_sentence(cache):
    for arguments, what in ((("clear", "all"), "'all' is nothing that the cache keeps"),
                            (("trim", "--to", "much"), "'much' is no size")):  # fmt: skip
        done = run(*arguments)
        assert done.exit_code == 2
        assert what in done.output
        assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), ("0", 0), ("20GB", 20 * 2**30), ("1.5 MiB", 3 * 2**19), ("2t", 2 * 2**40)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert cache_folder.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1 PB", "1e3", "12 GBs"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match="is no size"):
        cache_folder.parse_size(text)
