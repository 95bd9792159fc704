"""Names of quantizers: what parses, what is refused with which choices, and how backends are found."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import quantize
from harness.errors import QuantizationError, UnknownNameError
from harness.quantize.backends import rtn
from harness.records import QuantizerSpec

SPECS = quantize.presets()
BACKENDS = (
    "autoawq", "autogptq", "autoround", "awq", "bnb", "ggml", "gguf", "gptq", "hqq", "quanto", "reference", "rtn",
    "submitted", "torchao",
)  # fmt: skip
THREE = (
    "autogptq-3bit-g128-sym, autoround-3bit-g64-sym, gguf-q3_k, gptq-3bit-g128-sym, gptq-3bit-g64-sym, hqq-3bit-g64, "
    "rtn-3bit-g128, rtn-3bit-g64, "
    "rtn-3bit-g128-mse or torchao-int3-g64."
)


@pytest.mark.parametrize(
    "name",
    [
        " rtn-4bit-g128", "rtn-4bit-g128 ", "rtn-4bit-g64\n", "rtn-4bit-g1000000", "rtn-4bit-g0128", "rtn-04bit-g64",
        "rtn-4bit-g-64", "rtn-4bit-g64-asym", "rtn-4bit-sym", "rtn-4bit-sym-g64", "rtn-4bit-row-row",
        "rtn-3bit-g\u0661", "rtn-\u0664bit-g64", "rtn-4.5bit-g64",
        "rtn-16bit-g64", "rtn_4bit_g64", "bnb_nf4", "bnb-fp4-dq", "BNB-NF4",
        "rtn-4bit-g64-mse-sym", "rtn-4bit-g64-mse-f32",
        "hqq-5bit-g64", "hqq-4bit-g63", "hqq-4bit", "quanto-int3-g128", "quanto-int4",
        "torchao-int1-g64",
        "torchao-int4", "gguf-q4-0", "gguf-Q4_0", "gguf-q4_k_m", "gptq-4bit", "gptq-5bit-g64", "gptq-4bit-g64-sym-act",
        "gptq-4bit-g64-calib-retain", "gptq-4bit-g64-calib-wikitext", "awq-3bit-g64", "awq-4bit-row",
        "autoround-4bit-row", "autogptq-4bit", "autogptq-5bit-g64", "autogptq-4bit-g64-sym-act", "auto-gptq-4bit-g64",
        "autoawq-3bit-g64", "autoawq-4bit-row", "autoawq-4bit-g64-sym", "autoawq-4bit-g64-calib-retain",
        "autoround-4bit-g64-sym-iters200", "autoround-4bit-g64-iters01",
        "reference ", "Reference", "16bit", "none",
    ],
)  # fmt: skip
def test_a_name_that_is_nearly_one_is_never_taken_for_it(name: str) -> None:
    assert all(backend.parse(name) is None for backend in quantize.discover().values())
    with pytest.raises(UnknownNameError) as caught:
        quantize.resolve(name)
    assert (caught.value.kind, caught.value.name) == ("quantizer", name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("3", THREE),
        ("w3", THREE),
        ("INT3", THREE),
        ("u3", THREE),
        (" 3-bit ", THREE),
        ("3 bits", THREE),
        ("5", "gguf-q5_k, gguf-q5_1 or gguf-q5_0."),
        ("rtn_8bit", "rtn-8bit-g128 or rtn-8bit-g64."),
        ("bnb", "bnb-int8, bnb-nf4, bnb-fp4 or bnb-nf4-dq."),
        ("awq", "autoawq-4bit-g128, autoawq-4bit-g64, awq-4bit-g128 or awq-4bit-g64."),
        ("autoawq", "autoawq-4bit-g128 or autoawq-4bit-g64."),
        ("gguf-q4", "gguf-q4_k, gguf-q4_1 or gguf-q4_0."),
        ("gguf_q5", "gguf-q5_k, gguf-q5_1 or gguf-q5_0."),
        ("hqq", "hqq-8bit-g64, hqq-4bit-g64, hqq-3bit-g64, hqq-2bit-g64 or hqq-1bit-g64."),
        ("mse", "rtn-4bit-g128-mse, rtn-3bit-g128-mse or rtn-2bit-g128-mse."),
        ("p4", None),
        ("ref", None),
    ],
)
def test_a_short_name_is_answered_with_exactly_what_it_may_mean(name: str, choices: str | None) -> None:
    with pytest.raises(UnknownNameError) as caught:
        quantize.resolve(name)
    told = str(caught.value)
    if choices is None:
        assert told.startswith("There is no quantizer named")
    else:
        assert told.startswith(f"{name!r} names no single quantizer, since backend, group size and symmetry")
        assert told.endswith(f": choose {choices}")


@given(
    st.text(max_size=24)
    | st.from_regex(
        r"\A(rtn|bnb|gptq|awq|auto-?gptq|autoawq|hqq|torchao)[-_]?(int)?\d?\d?(bit)?-?(g\d{0,7}|row)?(-act)?(-sym|-asym)?(-mse)?\Z"
    )
)
def test_any_text_is_a_spec_of_that_very_name_or_a_refusal(name: str) -> None:
    told = ""
    try:
        spec = quantize.resolve(name)
    except UnknownNameError as refused:
        told = str(refused)
    else:
        assert spec.name == name
        assert quantize.backend_of(spec).parse(name) == spec
        return
    assert told[-1] in ".?"


@given(bits=st.integers(2, 8), group=st.none() | st.integers(1, 999_999), symmetric=st.booleans())
def test_a_spec_says_in_its_label_all_that_its_name_says(bits: int, group: int | None, symmetric: bool) -> None:
    spec = quantize.resolve(f"rtn-{bits}bit-{'row' if group is None else f'g{group}'}{'-sym' if symmetric else ''}")
    assert (spec.backend, spec.bits, spec.group_size, spec.symmetric) == ("rtn", bits, group, symmetric)
    where = "per row" if group is None else f"group {group}"
    assert spec.label == f"RTN {bits}-bit, {where}, {'symmetric' if symmetric else 'asymmetric'}"


def test_presets_go_from_16_bit_down_within_each_backend() -> None:
    assert [spec.name for spec in SPECS if spec.bits > 8] == ["reference"] == [SPECS[0].name]
    rest = SPECS[1:]
    backends = [spec.backend for spec in rest]
    assert backends == sorted(backends)
    for backend in set(backends):
        bits = [spec.bits for spec in rest if spec.backend == backend]
        assert bits == sorted(bits, reverse=True)


def test_specs_are_plain_json_since_they_go_into_cell_keys() -> None:
    for spec in SPECS:
        told = dataclasses.asdict(spec)
        assert json.loads(json.dumps(told)) == told


def test_code_books_claim_no_symmetry_and_uniform_grids_do() -> None:
    told = {spec.name: (spec.symmetric, spec.group_size, spec.options) for spec in SPECS if spec.backend == "bnb"}
    assert told == {
        "bnb-int8": (True, None, {"threshold": 6.0}),
        "bnb-nf4": (None, 64, {"double_quant": False}),
        "bnb-fp4": (None, 64, {"double_quant": False}),
        "bnb-nf4-dq": (None, 64, {"double_quant": True}),
    }


class _Named(rtn.RoundToNearest):
    backend = "grid"


@pytest.mark.parametrize("impostor", [object(), "rtn", rtn.RoundToNearest()])
def test_a_module_whose_backend_is_none_is_named(add_backend: Callable[[str, object], None], impostor: object) -> None:
    add_backend("grid", impostor)
    with pytest.raises(QuantizationError, match=r"BACKEND in .*backends/grid\.py is no backend.*name 'grid'"):
        quantize.discover()


def test_a_new_module_with_a_backend_is_found_without_being_listed(add_backend: Callable[[str, object], None]) -> None:
    add_backend("grid", _Named())
    assert sorted(quantize.discover()) == sorted([*BACKENDS, "grid"])
    with pytest.raises(TypeError):
        quantize.discover()["other"] = _Named()  # type: ignore[index]


def test_every_backend_is_found_and_says_whether_it_repeats_itself() -> None:
    assert sorted(quantize.discover()) == sorted(BACKENDS)
    assert all(backend.deterministic is True for backend in quantize.discover().values())


@pytest.mark.parametrize("preset", SPECS, ids=lambda spec: spec.name)
def test_group_and_symmetry_stand_in_every_label(preset: QuantizerSpec) -> None:
    if preset.bits == 16:
        return
    group = "per row" if preset.group_size is None else str(preset.group_size)
    assert group in preset.label
    if preset.symmetric is not None:
        assert preset.label.split(", ")[2].startswith("symmetric" if preset.symmetric else "asymmetric")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gptq-4bit-g64-act", {"desc_act": True, "calibration": "retain"}),
        ("gptq-2bit-row-act-sym-calib-forget", {"desc_act": True, "calibration": "forget"}),
        ("awq-4bit-g32-sym-calib-holdout", {"calibration": "holdout"}),
        ("autogptq-4bit-g64-act", {"desc_act": True, "calibration": "retain"}),
        ("autogptq-3bit-row-sym-calib-holdout", {"desc_act": False, "calibration": "holdout"}),
        ("autoawq-4bit-g32-calib-forget", {"calibration": "forget"}),
        ("autoround-8bit-g128-iters0-calib-random", {"iters": 0, "calibration": "random"}),
        ("autoround-4bit-g64-sym", {"iters": 200, "calibration": "retain"}),
        ("rtn-5bit-row-sym-mse", {"clip": "mse"}),
        ("rtn-2bit-g64-f32", {"scales": "float32"}),
        ("hqq-3bit-g128", {"axis": 1}),
        ("torchao-int6-g32-asym", {"config": "IntxWeightOnlyConfig"}),
    ],
)
def test_a_full_name_carries_every_choice_into_the_spec(name: str, options: dict[str, object]) -> None:
    spec = quantize.resolve(name)
    assert spec.name == name
    assert options.items() <= spec.options.items()
    assert spec.symmetric is (name.count("-sym") == 1)
    assert spec.calibration is None
    source = options.get("calibration", "retain")
    assert source == "retain" or f"calibrated on {source}" in spec.label


@pytest.mark.parametrize("backend", ["autoround", "awq", "gguf", "gptq", "hqq", "quanto", "torchao"])
def test_a_library_that_is_not_installed_is_named_with_the_way_to_get_it(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import metadata

    from harness.quantize import libraries

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(libraries.metadata, "version", absent)
    found = quantize.discover()[backend]
    told = found.unavailable_reason(found.presets()[0], "cpu") or ""
    assert told.startswith(f"{found.presets()[0].name} needs ")
    assert told.endswith("not installed here: run pip install 'quench-bench[quantizers]'.")
    assert found.library_version() is None


@pytest.mark.parametrize("backend", ["autogptq", "autoawq"])
def test_a_library_in_an_environment_of_its_own_is_named_with_the_command_that_makes_it(
    backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path))
    found = quantize.discover()[backend]
    told = found.unavailable_reason(found.presets()[0], "cpu") or ""
    assert told.startswith(f"{found.presets()[0].name} needs ")
    assert told.endswith("not made here: run quench backends install autogptq autoawq.")
    assert found.library_version() is None


def test_versions_are_those_of_what_quantizes(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    found = quantize.discover()
    assert found["reference"].library_version() is None
    assert found["rtn"].library_version()
    assert found["bnb"].library_version() == metadata.version("bitsandbytes")

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert found["bnb"].library_version() is None


@pytest.mark.parametrize(
    ("absent", "told"),
    [
        ({"accelerate"}, "bnb-int8 needs accelerate, not"),
        ({"bitsandbytes", "accelerate"}, "needs bitsandbytes and accelerate, not"),
    ],
)
def test_only_what_is_missing_is_asked_for(absent: set[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.quantize.backends import bnb

    monkeypatch.setattr(bnb, "find_spec", lambda name: None if name in absent else types.SimpleNamespace())
    spec = quantize.resolve("bnb-int8")
    assert told in (bnb.BACKEND.unavailable_reason(spec, "cpu") or "")
    for name in ("reference", "rtn-4bit-row"):
        other = quantize.resolve(name)
        assert quantize.backend_of(other).unavailable_reason(other, "cpu") is None
