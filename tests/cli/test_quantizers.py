"""`quench backends`: the matrix, the presets, one backend, and installing those that live apart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from harness import quantize
from harness.cli import options, quantizers
from harness.cli.main import app
from harness.errors import QuantizationError, UnknownNameError
from harness.quantize import legacy, libraries
from harness.quantize.backend import WIDTHS

HEAVY = (
    "torch", "transformers", "peft", "lm_eval", "duckdb", "bitsandbytes", "gptqmodel", "hqq", "optimum", "torchao",
    "gguf", "auto_round", "accelerate", "safetensors", "tokenizers",
)  # fmt: skip


def makers() -> dict[str, Any]:
    """All backends but the one that reads what was submitted quantized."""
    return {name: backend for name, backend in quantize.discover().items() if backend.presets()}


def quench(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Runs a command on a terminal of 80 columns and returns its lines."""

    def run(*arguments: str) -> list[str]:
        for module in (options, quantizers):
            for name in ("stdout", "stderr"):
                console = getattr(module, name)
                monkeypatch.setattr(console, "_width", 80)
                monkeypatch.setattr(console, "_force_terminal", True)
                monkeypatch.setattr(console, "_color_system", None)
        return [line.rstrip() for line in quench(*arguments).stdout.splitlines()]

    return run


def cells(lines: Sequence[str], backend: str) -> list[str]:
    """Returns a backend's cells of the matrix; reasons, which also begin with its name, stand below it."""
    return next(line for line in lines if line.split()[:1] == [backend]).split()[1:7]


def test_the_matrix_fits_80_columns_and_has_a_line_for_each_backend(narrow: Callable[..., list[str]]) -> None:
    lines = narrow("backends")
    assert max(map(len, lines)) <= 80
    (head,) = [line for line in lines if line.split()[:1] == ["backend"]]
    assert head.split() == ["backend", *map(str, WIDTHS), "calibrated", "groups"]
    for name in makers():
        assert len(cells(lines, name)) == len(WIDTHS)
    assert cells(lines, "reference") == ["yes", "-", "-", "-", "-", "-"]
    assert cells(lines, "rtn") == ["-", "yes", "yes", "yes", "yes", "-"]


def test_every_gap_of_the_matrix_is_explained_below_it(narrow: Callable[..., list[str]]) -> None:
    told = " ".join(" ".join(narrow("backends")).split())
    assert "torchao at 1 bit: torchao's int1 gives all zeros" in told
    assert "quanto at 3, 1 bit: quanto has types of 8, 4 and 2 bits" in told
    for name, backend in makers().items():
        for reason in backend.impossible.values():
            assert f"{name} at " in told
            assert reason in told


def test_what_is_not_installed_is_named_with_the_command_once_and_still_fits(
    narrow: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "version_of", lambda name: None)
    lines = narrow("backends")
    assert max(map(len, lines)) <= 80
    assert cells(lines, "gptq") == ["-", "lib", "lib", "lib", "lib", "-"]
    assert lines.count("gptq: run pip install 'quench-bench[quantizers]'") == 1
    assert lines.count("rtn: run pip install 'quench-bench[score]'") == 1


def test_without_a_card_nothing_is_said_to_run_on_one(
    narrow: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "cuda_devices", lambda: 0)
    lines = narrow("backends", "--device", "cuda")
    assert cells(lines, "rtn") == ["-", "GPU", "GPU", "GPU", "GPU", "-"]
    assert "rtn at 8, 4, 3, 2 bit: There is no device 'cuda' here (CUDA cards found: 0): use" in " ".join(lines)
    rows = json.loads(quench("backends", "--device", "cuda", "--json").stdout)["rows"]
    assert not any(row["runs_here"] for row in rows)


def test_presets_are_listed_on_demand(narrow: Callable[..., list[str]]) -> None:
    lines = narrow("backends", "--presets")
    assert max(map(len, lines)) <= 80
    shown = {line.split()[0] for line in lines if line.strip()}
    assert {spec.name for spec in quantize.presets()} <= shown


def test_json_gives_every_preset_and_every_cell_of_the_matrix() -> None:
    document = json.loads(quench("backends", "--json").stdout)
    assert document["schema"] == "quench.backends/1"
    listed = {row["quantizer"]: row for row in document["rows"]}
    assert list(listed) == [spec.name for spec in quantize.presets()]
    assert {"reference", "rtn-4bit-g128", "rtn-2bit-g64", "bnb-nf4", "bnb-fp4", "bnb-int8"} <= set(listed)
    assert listed["rtn-4bit-g128"]["runs_here"]
    for row in listed.values():
        assert row["runs_here"] == (row["state"] == "runs here") == (row["reason"] is None)
        assert row["runs_here"] or row["reason"].endswith((".", "`"))
    by_name = {row["backend"]: row for row in document["matrix"]}
    assert set(by_name) == set(makers())
    assert by_name["torchao"]["entries"][-1] == {
        "bits": 1, "state": "cannot", "reason": "torchao's int1 gives all zeros", "presets": [],
    }  # fmt: skip
    assert by_name["gptq"]["calibrated"]
    assert by_name["rtn"]["dense"] == "embeddings, norms, output head"


def test_one_backend_is_shown_with_its_presets_and_facts(narrow: Callable[..., list[str]]) -> None:
    lines = narrow("backends", "show", "rtn")
    shown = {line.split()[0] for line in lines if line.strip()}
    assert {spec.name for spec in quantize.discover()["rtn"].presets()} <= shown
    assert not any(name.startswith(("gptq", "bnb")) for name in shown)
    told = "\n".join(lines)
    for fact in (
        "Needs: pip install 'quench-bench[score]' (here: version 1)",
        "Groups: 128, 64, any",
        "Calibrated on the corpus's retain texts: no",
        "Run twice it gives the same codes each time",
        "Left in 16 bit: embeddings, norms, output head",
        "rtn at 1 bit: its two levels",
    ):
        assert fact in told


def test_one_backend_as_json_is_its_presets_alone() -> None:
    document = json.loads(quench("backends", "show", "hqq", "--json").stdout)
    assert document["schema"] == "quench.backends.show/1"
    assert [row["bits"] for row in document["rows"]] == [8, 4, 3, 2, 1]


def test_an_unknown_backend_is_one_sentence_with_the_nearest_name() -> None:
    result = quench("backends", "show", "gtpq", code=2)
    assert result.stderr == "Error: There is no quantization backend named 'gtpq': did you mean gptq or autogptq?\n"
    assert result.stdout == ""


def test_a_backend_that_makes_nothing_itself_has_nothing_to_show() -> None:
    assert "submitted" in quantize.discover()
    result = quench("backends", "show", "submitted", code=2)
    assert result.stderr.startswith("Error: There is no quantization backend named 'submitted': ")
    assert result.stdout == ""


def test_installing_nothing_is_refused() -> None:
    assert "names" in quench("backends", "install", code=2).stderr.lower()


@pytest.fixture
def installs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Puts something in the place of the real installation, which takes minutes; returns what it was asked for."""
    asked: list[Any] = []

    def install(names: Sequence[str], *, on_line: Callable[[str], None]) -> Path:
        asked.append(list(names))
        if "autogpqt" in names:
            raise UnknownNameError("environment for", "autogpqt", ["autoawq", "autogptq"])
        if "offline" in names:
            raise QuantizationError("The environment can't be made: there is no network; its log is install.log.")
        on_line("Collecting [bold]torch[/bold]==2.13.0")
        return tmp_path / "legacy"

    module = ModuleType("harness.quantize.legacy.environments")
    module.install = install  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(legacy, "environments", module, raising=False)
    return asked


def test_an_installation_shows_its_lines_as_they_are_and_where_it_went(installs: list[Any], tmp_path: Path) -> None:
    result = quench("backends", "install", "autogptq", "autoawq")
    assert installs == [["autogptq", "autoawq"]]
    assert result.stdout == ""
    first, last = result.stderr.splitlines()
    assert first == "Collecting [bold]torch[/bold]==2.13.0"
    assert last == f"Installed autogptq, autoawq in {tmp_path / 'legacy'}. Next: quench backends"


@pytest.mark.parametrize(("name", "code", "told"), [("autogpqt", 2, "did you mean autogptq"), ("offline", 1, "log")])
def test_an_installation_that_fails_is_one_sentence(installs: list[Any], name: str, code: int, told: str) -> None:
    result = quench("backends", "install", name, code=code)
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert told in result.stderr


@pytest.mark.parametrize("arguments", [[], ["--presets"], ["--json"], ["--device", "cuda"], ["show", "gptq"]])
def test_no_library_is_imported_to_say_what_runs(arguments: list[str]) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from harness.cli.main import app;"
        f"done = CliRunner().invoke(app, ['backends', *{arguments!r}]); assert done.exit_code == 0, done.output;"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
