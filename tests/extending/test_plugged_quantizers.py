"""Quantizers of installed packages: found, checked, kept apart from Quench's own, and part of every key."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness import plugins, quantize
from harness.cli.main import app
from harness.errors import PluginError, UnknownNameError
from harness.quantize import libraries, support_matrix
from harness.run.plan import planner
from harness.run.sandbox import fence

QUANTIZERS = plugins.QUANTIZERS

# A backend that answers every question rightly; tests break one answer each.
WORKING = """
from harness.quantize.backends.rtn import RoundToNearest
from harness.records import QuantizerSpec

def spec(name="own-4bit", backend="own", **more):
    return QuantizerSpec(name=name, backend=backend, bits=4, group_size=64, symmetric=True, label=name, **more)

class Own(RoundToNearest):
    backend = "own"
    impossible = {8: "no", 3: "no", 2: "no", 1: "no"}

    def presets(self):
        return (spec(),)

    def parse(self, name):
        return spec() if name == "own-4bit" else None

    def library_version(self):
        return "7.1"

BACKEND = Own()
"""


def quench(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    assert "Traceback" not in result.output
    return result.stdout if code == 0 else result.stderr


def rows(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(quench("backends", *arguments, "--json"))["rows"]
    return found


def test_the_example_s_quantizer_appears_in_backends_with_its_package(example: Path) -> None:
    mine = [row for row in rows() if row["backend"] == "pow2"]
    assert [row["quantizer"] for row in mine] == ["pow2-8bit-g64", "pow2-4bit-g64", "pow2-3bit-g64"]
    assert all(row["runs_here"] for row in mine)
    assert "Added by: quench-example 0.1.0" in quench("backends", "show", "pow2")
    assert "pow2 at 2 bit: half of its range is lost to the scale" in " ".join(quench("backends").split())
    assert quantize.resolve("pow2-4bit-g32").group_size == 32
    assert quantize.broken() == {}


def test_without_the_package_its_names_are_unknown() -> None:
    with pytest.raises(UnknownNameError, match="no quantizer named 'pow2-4bit-g64'"):
        quantize.resolve("pow2-4bit-g64")
    assert all(row.package is None for row in support_matrix.matrix("cpu"))


def test_package_and_version_are_part_of_the_key(declare: Any) -> None:
    declare("own-package", {QUANTIZERS: {"own": "own_module"}}, version="2.5", own_module=WORKING)
    backend = quantize.discover()["own"]
    assert backend.library_version() == "7.1"
    assert planner._quantizer_facts(quantize.resolve("own-4bit"))["version"] == "own-package 2.5, 7.1"
    assert planner._quantizer_facts(quantize.resolve("rtn-4bit-g64"))["version"] == "1"
    assert planner._quantizer_facts(quantize.resolve("reference"))["version"] is None
    (row,) = [row for row in support_matrix.matrix("cpu") if row.backend == "own"]
    assert row.library_version == "own-package 2.5, 7.1"


def test_reading_what_packages_declare_imports_none_of_them(declare: Any) -> None:
    declare("own-package", {QUANTIZERS: {"own": "own_module"}}, own_module="raise RuntimeError('imported')")
    assert [(each.name, each.origin) for each in plugins.found(QUANTIZERS)] == [("own", "own-package 1.0")]
    assert "own_module" not in sys.modules


def test_presets_of_the_example_load_no_numerical_library(example: Path) -> None:
    code = (
        "import sys; from harness import quantize; assert 'pow2' in quantize.discover();"
        "bad = {'torch', 'transformers', 'numpy'} & set(sys.modules); assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("class Own", "import not_there\nclass Own"), r"can't be imported \(ModuleNotFoundError: No module named 'no"),
        (("class Own", "raise SystemExit(3)\nclass Own"), r"can't be imported \(SystemExit: 3\): repair it, or run "),
        (("BACKEND = Own()", "BACKEND = 3"), r"is no backend named 'own': own_module needs a BACKEND with every"),
        (('    backend = "own"', '    backend = "rtn"'), r"is no backend named 'own'"),
        (("return (spec(),)", "return 1 / 0"), r"fails when it is asked what it offers \(ZeroDivisionError: division"),
        (("return (spec(),)", "return ()"), r"offers no preset"),
        (("return (spec(),)", "return (spec(backend='rtn'),)"), r"that is not its own"),
        (("return (spec(),)", "return (spec('rtn-4bit-g64'),)"), r"has a preset named 'rtn-4bit-g64': names of its "),
        (("== \"own-4bit\"", "== 'x'"), r"does not know its own preset own-4bit by name"),
        (("return (spec(),)", "return (spec(options={'calibration': 'mood'}),)"), r"can't be calibrated|by name"),
        (('8: "no", 3: "no"', '8: "no"'), r"says nothing of 3 bit: every width needs a preset, or a reason"),
        (('return "7.1"', "raise KeyError('version')"), r"fails when it is asked what it offers \(KeyError"),
    ],
)  # fmt: skip
def test_a_broken_plug_in_is_one_row_with_the_reason_and_hinders_no_other(
    change: tuple[str, str], reason: str, declare: Any
) -> None:
    assert change[0] in WORKING
    declare("own-package", {QUANTIZERS: {"own": "own_module"}}, own_module=WORKING.replace(*change))
    before = {row["quantizer"] for row in rows()}
    assert {"reference", "rtn-4bit-g64", "bnb-nf4"} <= before
    assert not any(name.startswith("own") for name in before)
    (told,) = quantize.broken().values()
    assert told.startswith("Plug-in 'own' of own-package 1.0 (quench.quantizers) ")
    (row,) = [row for row in support_matrix.matrix("cpu") if row.backend == "own"]
    assert {(entry.state, entry.reason) for entry in row.entries} == {("cannot", told)}
    assert row.package == "own-package 1.0"
    assert " ".join(told.split()) in " ".join(quench("backends").split())
    with pytest.raises(PluginError, match=reason):
        quantize.resolve("own-4bit")
    assert told in " ".join(quench("plan", "--quantizers", "own-4bit", code=2).split())


@pytest.mark.parametrize(("name", "reason"), [
    ("rtn", "takes a name of Quench itself: rename it, built-in names can't be replaced"),
    ("submitted", "takes a name of Quench itself"),
    ("autogptq", "takes a name of Quench itself"),
    ("Own", "has no usable name: lower-case letters, digits and _ are accepted"),
    ("own-4", "has no usable name"),
])  # fmt: skip
def test_a_plug_in_can_not_take_the_name_of_a_built_in_backend(name: str, reason: str, declare: Any) -> None:
    own = {row["quantizer"] for row in rows()}
    declare("own-package", {QUANTIZERS: {name: "own_module"}}, own_module=WORKING)
    (told,) = quantize.broken().values()
    assert reason in told
    assert {row["quantizer"] for row in rows()} == own
    assert quantize.with_package("rtn", "1") == "1"
    assert "own_module" not in sys.modules, "its code was run for nothing"


def test_two_packages_can_not_both_have_a_name(declare: Any) -> None:
    declare("first", {QUANTIZERS: {"own": "own_module"}}, own_module=WORKING)
    declare("second", {QUANTIZERS: {"own": "own_module"}})
    assert "own" not in quantize.discover()
    assert "is declared by first as well: uninstall all but one of them" in quantize.broken()["own"]


def test_a_plug_in_s_parse_is_asked_for_its_own_names_alone(declare: Any) -> None:
    greedy = WORKING.replace('return spec() if name == "own-4bit" else None', "return spec()")
    declare("own-package", {QUANTIZERS: {"own": "own_module"}}, own_module=greedy)
    assert "own" in quantize.discover()
    assert quantize.resolve("own-whatever").name == "own-4bit"
    with pytest.raises(UnknownNameError):
        quantize.resolve("squeeze-4bit")


def test_a_fenced_worker_may_read_the_packages(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert example / "quench_example" in set(map(Path, fence._software()))
    # An editable install finds its code by a hook, not on the path.
    assert plugins.place(plugins.found(QUANTIZERS)[0]) == example / "quench_example" / "pow2"


def test_a_module_that_is_not_there_has_no_place(declare: Any) -> None:
    declare("own-package", {QUANTIZERS: {"own": "nowhere_at_all.own"}})
    with pytest.raises(PluginError, match=r"names the module nowhere_at_all\.own, which is not there: install its "):
        plugins.place(plugins.found(QUANTIZERS)[0])
    assert list(plugins.folders()) == []


def test_what_it_lacks_is_said_by_the_plug_in_itself(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "version_of", lambda name: None if name == "torch" else "1")
    (reason,) = {row["reason"] for row in rows() if row["quantizer"] == "pow2-4bit-g64"}
    assert reason == "pow2-4bit-g64 needs torch, not installed here: run pip install 'quench-bench[score]'."
