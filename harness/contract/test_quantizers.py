"""Every quantizer that an installed package adds, held to what Quench's own backends are held to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from harness import plugins, quantize
from harness.contract import quantizers
from harness.errors import QuantizationError
from harness.quantize import calibration
from harness.quantize.models.dense import load_dense
from harness.records import Checkpoint, QuantizedModel

Make = Callable[[str, str], QuantizedModel]

NAMES = sorted(name for name in quantize.discover() if quantize.origin_of(name) is not None)
PRESETS = [spec.name for name in NAMES for spec in quantize.discover()[name].presets()]
EASY, AWKWARD = ("even256", "even128", "llama"), ("gqa576", "gemma2", "gpt_neox")


def test_no_declared_quantizer_is_broken() -> None:
    """Whatever a package declares can be used."""
    assert dict(quantize.broken()) == {}


@pytest.mark.parametrize("name", NAMES)
def test_its_names_are_its_own(name: str) -> None:
    """Presets are found by name, and no name of others is taken."""
    quantizers.check_names(name)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_can_and_what_it_can_not(name: str) -> None:
    """Every width is a preset or has a reason; reasons are sentences."""
    quantizers.check_facts(name)


@pytest.mark.parametrize("name", NAMES)
def test_listing_it_loads_no_numerical_library(name: str) -> None:
    """`quench backends` and planning start at once."""
    heavy = ("torch", "transformers", "numpy")
    code = f"import sys; from harness import quantize; quantize.discover()[{name!r}].presets();"
    code += f"bad = set({heavy!r}) & set(sys.modules); assert not bad, f'import {{bad}} inside functions'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def make(checkpoint_of: Callable[[str], Checkpoint], calibration_texts: tuple[str, ...]) -> Make:
    """Quantizes a shape with a preset; skips what can't run on this machine."""

    def quantized(preset: str, shape: str) -> QuantizedModel:
        spec, texts = calibration.prepare(quantize.resolve(preset), {"retain": calibration_texts})
        backend = quantize.backend_of(spec)
        if reason := backend.unavailable_reason(spec, "cpu"):
            pytest.skip(reason)
        return backend.quantize(checkpoint_of(shape), spec, device="cpu", calibration=texts)

    return quantized


def _first_that_it_takes(make: Make, preset: str) -> tuple[str, QuantizedModel]:
    refusals = []
    for shape in EASY:
        try:
            return shape, make(preset, shape)
        except QuantizationError as error:
            refusals.append(str(error))
    pytest.fail(f"{preset} refuses every shape: {refusals}")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_repeats_itself_holds_its_proof_and_changes_block_linears_alone(
    preset: str, make: Make, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    """On a small Llama: same model twice, proved, files untouched, everything else as it was."""
    shape, first = _first_that_it_takes(make, preset)
    before = quantizers.files_of(checkpoint_of(shape))
    second = make(preset, shape)
    assert quantizers.files_of(checkpoint_of(shape)) == before, "the checkpoint's own files were changed"
    if quantize.backend_of(first.spec).deterministic:
        quantizers.check_repeats(first, second)
    quantizers.check_proof(first)
    if first.layers:
        quantizers.check_only_block_linears_change(first, load_dense(checkpoint_of(shape), device="cpu"))


@pytest.mark.parametrize("shape", AWKWARD)
@pytest.mark.parametrize("preset", PRESETS)
def test_an_awkward_shape_is_proved_or_refused_in_a_sentence_that_names_the_layer(
    preset: str, shape: str, make: Make
) -> None:
    """Rows that no group divides, tied heads, other architectures."""
    refusal, quantized = None, None
    try:
        quantized = make(preset, shape)
    except QuantizationError as error:
        refusal = str(error)
    if quantized is None:
        assert refusal is not None
        assert "\n" not in refusal
        assert "layers." in refusal, f"{refusal!r} names no layer"
        return
    quantizers.check_proof(quantized, linear_layers=8 if shape == "gpt_neox" else 14)


@pytest.mark.parametrize("name", NAMES)
def test_the_package_s_version_is_in_the_key(name: str) -> None:
    """Another version of the package, another cell."""
    (plugin,) = [each for each in plugins.found(plugins.QUANTIZERS) if each.name == name]
    version: Any = quantize.with_package(name, quantize.discover()[name].library_version())
    assert version.startswith(plugin.origin)
