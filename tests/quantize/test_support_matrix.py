"""The matrix of backends and widths: every cell has presets or a reason, and facts are those of the backends."""

from __future__ import annotations

import ctypes
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from types import MappingProxyType, SimpleNamespace

import pytest

from harness import quantize
from harness.errors import QuantizationError
from harness.quantize import calibration, libraries, support_matrix
from harness.quantize.backend import WIDTHS
from harness.quantize.backends import rtn
from harness.records import QuantizerSpec

BACKENDS = sorted(name for name, backend in quantize.discover().items() if backend.presets())
LIBRARIES = (
    "torch", "transformers", "numpy", "bitsandbytes", "gptqmodel", "hqq", "optimum", "torchao", "gguf", "auto_round",
)  # fmt: skip


@pytest.mark.parametrize("name", BACKENDS)
def test_every_width_of_a_backend_is_a_preset_or_impossible_with_a_reason(name: str) -> None:
    backend = quantize.discover()[name]
    made = {spec.bits for spec in backend.presets()}
    widths = set(WIDTHS) - {16} if name != "reference" else set(WIDTHS)
    assert made & set(backend.impossible) == set()
    assert widths - made == set(backend.impossible), f"{name}: give a preset or a reason for each of these widths"
    for reason in backend.impossible.values():
        assert 0 < len(reason) <= 90
        assert reason[-1] not in ".!?", "a few words that others end or go on from"


@pytest.mark.parametrize("name", BACKENDS)
def test_what_is_impossible_no_name_of_the_backend_asks_for(name: str) -> None:
    backend = quantize.discover()[name]
    for spec in backend.presets():
        for bits in backend.impossible:
            other = spec.name.replace(f"{spec.bits}bit", f"{bits}bit").replace(f"int{spec.bits}", f"int{bits}")
            assert other == spec.name or backend.parse(other) is None, other


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_names_the_command_that_its_refusals_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = quantize.discover()[name]
    assert backend.install.startswith(("pip install 'quench-bench[", "quench backends install ", "install llama.cpp"))

    def absent(distribution: str) -> None:
        return None

    monkeypatch.setattr(libraries, "version_of", absent)
    monkeypatch.setattr("harness.quantize.backends.bnb.find_spec", absent)
    reason = backend.unavailable_reason(backend.presets()[0], "cpu")
    # Those in an interpreter of their own look for that one, not for distributions here; llama.cpp alone is not enough.
    assert reason is None or backend.install in reason or backend.backend == "ggml"
    if backend.install.startswith("pip"):
        assert reason is not None
        row = support_matrix.row(backend, "cpu")
        assert {entry.state for entry in row.entries if entry.presets} == {"needs install"}
        assert {entry.state for entry in row.entries if not entry.presets} <= {"cannot"}


def test_the_matrix_has_each_backend_once_the_reference_first_and_each_preset_of_its_widths() -> None:
    rows = support_matrix.matrix("cpu")
    assert [row.backend for row in rows] == ["reference", *(name for name in BACKENDS if name != "reference")]
    shown = {name for row in rows for entry in row.entries for name in entry.presets}
    assert shown == {spec.name for spec in quantize.presets() if spec.bits in WIDTHS}
    for row in rows:
        assert tuple(entry.bits for entry in row.entries) == WIDTHS
        for entry in row.entries:
            assert (entry.reason is None) == (entry.state == "runs here")
            assert (entry.presets == ()) == (entry.state == "cannot")


def test_facts_are_those_of_the_presets() -> None:
    rows = {row.backend: row for row in support_matrix.matrix("cpu")}
    calibrated = {spec.backend for spec in quantize.presets() if calibration.recipe_of(spec) is not None}
    assert {name for name, row in rows.items() if row.calibrated} == calibrated
    assert {"gptq", "awq", "autoround"} <= calibrated
    told = {name: (row.groups, row.any_group, row.group_text) for name, row in rows.items()}
    assert told["rtn"] == ((128, 64), True, "128, 64, any")
    assert told["gguf"] == ((32,), False, "32")
    assert told["bnb"] == ((None, 64), False, "row, 64")
    assert told["torchao"] == ((None, 64), True, "row, 64, any")
    assert told["reference"] == ((), False, "")
    assert rows["reference"].dense == "everything"
    assert {row.dense for name, row in rows.items() if name != "reference"} == {support_matrix.DENSE}
    assert all(row.deterministic == quantize.discover()[name].deterministic for name, row in rows.items())
    assert all(row.library_version == quantize.discover()[name].library_version() for name, row in rows.items())


class _OnCards(rtn.RoundToNearest):
    """A backend that works on a card alone."""

    backend = "card"
    impossible = MappingProxyType({16: "", 3: "too narrow", 2: "too narrow", 1: "far too narrow"})

    def presets(self) -> tuple[QuantizerSpec, ...]:
        found = (super().parse("rtn-8bit-g64"), super().parse("rtn-4bit-g64"))
        return tuple(dataclasses.replace(spec, name=f"card-{spec.bits}", backend="card") for spec in found if spec)

    def unavailable_reason(self, spec: QuantizerSpec, device: str) -> str | None:
        return None if device.startswith("cuda") else f"{spec.name} needs a CUDA card."


def test_what_only_a_card_can_do_is_said_to_need_one(
    add_backend: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = _OnCards()
    add_backend("card", backend)
    row = support_matrix.row(backend, "cpu")
    assert [entry.state for entry in row.entries] == ["cannot", "needs a GPU", "needs a GPU", *["cannot"] * 3]
    assert row.entries[1].reason == "card-8 needs a CUDA card."
    assert support_matrix.gaps(row, "cannot") == {"too narrow": [3, 2], "far too narrow": [1]}
    assert support_matrix.gaps(row, "needs a GPU") == {
        "card-8 needs a CUDA card.": [8],
        "card-4 needs a CUDA card.": [4],
    }
    monkeypatch.setattr(libraries, "cuda_devices", lambda: 1)
    assert {entry.state for entry in support_matrix.row(backend, "cuda").entries} == {"cannot", "runs here"}


@pytest.mark.parametrize("member", ["install", "impossible", "deterministic"])
def test_a_backend_without_a_fact_is_refused_with_its_file(
    member: str, add_backend: Callable[[str, object], None]
) -> None:
    facts = {name: getattr(rtn.BACKEND, name) for name in dir(rtn.BACKEND) if not name.startswith("_")}
    add_backend("grid", SimpleNamespace(**{k: v for k, v in facts.items() if k != member} | {"backend": "grid"}))
    with pytest.raises(QuantizationError, match=r"backends/grid\.py is no backend: it must have every member"):
        quantize.discover()


@pytest.mark.parametrize(
    ("device", "cards", "missing"),
    [("cpu", 0, False), ("cuda", 0, True), ("cuda", 1, False), ("cuda:0", 1, False), ("cuda:1", 1, True),
     ("cuda:1", 2, False), ("mps", 0, False)],
)  # fmt: skip
def test_a_card_that_is_not_there_is_missed_by_its_number(
    device: str, cards: int, missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "cuda_devices", lambda: cards)
    reason = libraries.gpu_reason(device)
    assert (reason is not None) == missing
    if reason is not None:
        assert f"no device {device!r} here (CUDA cards found: {cards})" in reason
    spec = quantize.resolve("rtn-4bit-g64")
    assert support_matrix.state_of(spec, device) == (("needs a GPU", reason) if missing else ("runs here", None))


class _Driver:
    """A driver as ctypes would load it; ``fails`` names the call that returns an error."""

    def __init__(self, cards: int, fails: str = "") -> None:
        self.cards, self.fails = cards, fails

    def cuInit(self, flags: int) -> int:
        return 100 if self.fails == "cuInit" else 0

    def cuDeviceGetCount(self, count: object) -> int:
        count._obj.value = self.cards  # type: ignore[attr-defined]
        return 3 if self.fails == "cuDeviceGetCount" else 0


@pytest.mark.parametrize(("fails", "found"), [("", 3), ("cuInit", 0), ("cuDeviceGetCount", 0)])
def test_cards_are_counted_by_the_driver_and_none_where_it_fails(
    fails: str, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: _Driver(3, fails))
    assert libraries.cuda_devices() == found


def test_the_cards_that_are_counted_are_those_that_torch_finds() -> None:
    import torch

    assert libraries.cuda_devices() == torch.cuda.device_count()


def test_making_the_matrix_loads_no_numerical_library() -> None:
    loaded = f"[name for name in {LIBRARIES!r} if name in sys.modules]"
    code = f"import sys; from harness.quantize import support_matrix as matrix; matrix.matrix('cuda'); print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
