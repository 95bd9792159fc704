"""The walk of backends that calibrate, with a library of our own in the place of the real ones."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import quantize
from harness.errors import QuantizationError
from harness.quantize import calibration
from harness.quantize.backends.awq import rescaled
from harness.quantize.models.dense import block_linears
from harness.quantize.proof import prove
from harness.quantize.rounding.uniform_grid import round_to_grid
from harness.quantize.runners.calibrated import Made, make, windows_for
from harness.quantize.runners.gptqmodel import _alive, _environment, _logs_in, _staged
from harness.records import Checkpoint, QuantizerSpec

from test_packed_gptq import layer  # isort: skip

CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "checkpoint_format": "gptq"}


class TinyLibrary:
    """Rounds every block linear of a checkpoint and saves it the way GPTQ's libraries do."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.windows: list[list[int]] = []
        self.folders: list[str] = ["saved"]

    def __call__(self, windows: list[list[int]], place: Path) -> None:
        self.windows = windows
        tensors = load_file(Path(self.checkpoint.path) / "model.safetensors")
        for name in [key for key in tensors if key.endswith("_proj.weight")]:
            grid = round_to_grid(tensors.pop(name), bits=4, group_size=64, symmetric=True)
            parts = layer(grid.codes, grid.scales, grid.zeros, 4)
            tensors |= {f"{name.removesuffix('weight')}{part}": value.contiguous() for part, value in parts.items()}
        for folder in self.folders:
            (place / folder).mkdir()
            save_file(tensors, place / folder / "model.safetensors")
            (place / folder / "config.json").write_text(json.dumps({"quantization_config": CONFIG}), encoding="utf-8")


@pytest.fixture
def library(checkpoint_of: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TinyLibrary:
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "cache"))
    return TinyLibrary(checkpoint_of("llama"))


@pytest.fixture
def prepared(calibration_texts: tuple[str, ...]) -> tuple[QuantizerSpec, tuple[str, ...]]:
    return calibration.prepare(quantize.resolve("gptq-4bit-g64-sym"), {"retain": calibration_texts})


def _make(library: TinyLibrary, spec: QuantizerSpec, texts: tuple[str, ...], **changes: Any) -> Made:
    told = {"device": "cpu", "library": "tiny", "row_multiple": 32, "width_multiple": 32} | changes
    return make(library.checkpoint, spec, texts, library, **told)


def test_what_the_library_saved_is_read_back_and_holds_its_proof(
    library: TinyLibrary, prepared: tuple[QuantizerSpec, tuple[str, ...]], tmp_path: Path
) -> None:
    spec, texts = prepared
    made = _make(library, spec, texts)
    # In the model's order, not in that of the file.
    assert list(made.layers) == list(block_linears(made.model))
    quantized = made.finish(spec, prove(made.model, library.checkpoint, spec, made.layers, remarks=(made.remark,)))
    assert quantized.proof is not None
    assert quantized.proof.quantized_layers == 14
    assert quantized.proof.remarks == (f"Calibrated on retain text: {len(library.windows)} windows, "
                                       f"{sum(map(len, library.windows))} tokens.",)  # fmt: skip
    assert quantized.quantize_seconds == made.seconds > 0
    # Nothing is left behind in the cache.
    assert list((tmp_path / "cache").iterdir()) == []


def test_windows_fit_the_model_and_hold_the_texts_own_tokens(
    library: TinyLibrary, prepared: tuple[QuantizerSpec, tuple[str, ...]]
) -> None:
    spec, texts = prepared
    recipe, windows = windows_for(library.checkpoint, spec, texts)
    # The model takes 64 tokens at a time, fewer than the recipe's 128.
    assert recipe.tokens == 128
    assert {len(window) for window in windows} == {64}
    assert len(windows) == 24 * 60 // 64
    first = [int(word.removeprefix("w")) + 3 for word in texts[0].split()]
    assert windows[0][:60] == first


def test_random_tokens_need_no_texts(library: TinyLibrary) -> None:
    spec, texts = calibration.prepare(quantize.resolve("gptq-4bit-g64-sym-calib-random"), {})
    assert _make(library, spec, texts).remark == "Calibrated on random tokens: 64 windows, 4096 tokens."
    assert {token for window in library.windows for token in window} == set(range(3, 96))


def test_without_texts_or_with_others_nothing_is_quantized(
    library: TinyLibrary, prepared: tuple[QuantizerSpec, tuple[str, ...]]
) -> None:
    spec, texts = prepared
    with pytest.raises(QuantizationError, match="needs calibration texts and got none"):
        _make(library, spec, ())
    with pytest.raises(QuantizationError, match="got other calibration texts"):
        _make(library, spec, texts[1:])
    assert library.windows == []


def test_a_checkpoint_without_a_tokenizer_is_told_so(
    library: TinyLibrary, prepared: tuple[QuantizerSpec, tuple[str, ...]], tmp_path: Path
) -> None:
    library.checkpoint = dataclasses.replace(library.checkpoint, tokenizer_path=str(tmp_path))
    with pytest.raises(QuantizationError, match=r"calibrates on text: .* holds no tokenizer\.json: put it there"):
        _make(library, *prepared)


@pytest.mark.parametrize(("rows", "width", "first"), [(256, 32, "q_proj"), (32, 256, "q_proj"), (32, 128, "down_proj")])
def test_a_layer_that_the_library_has_no_place_for_is_refused_before_it_runs(
    rows: int, width: int, first: str, library: TinyLibrary, prepared: tuple[QuantizerSpec, tuple[str, ...]]
) -> None:
    match = rf"can't hold model\.layers\.0\..*{first}: tiny wants a multiple of {rows} rows and of {width} weights"
    with pytest.raises(QuantizationError, match=match):
        _make(library, *prepared, row_multiple=rows, width_multiple=width)
    assert library.windows == []


def test_what_a_library_says_when_it_fails_is_passed_on_in_one_sentence(
    library: TinyLibrary, prepared: tuple[QuantizerSpec, tuple[str, ...]], tmp_path: Path
) -> None:
    def fail(windows: list[list[int]], place: Path) -> None:
        (place / "half").write_text("written", encoding="utf-8")
        raise ValueError("no such kernel\nand a long story")

    told = {"device": "cpu", "library": "tiny", "row_multiple": 1, "width_multiple": 1}
    with pytest.raises(QuantizationError, match=r"^gptq-4bit-g64-sym failed inside tiny, which says: no such kernel$"):
        make(library.checkpoint, *prepared, fail, **told)  # type: ignore[arg-type]
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("folders", [[], ["one", "two"]])
def test_another_number_of_checkpoints_than_one_is_refused(
    folders: list[str], library: TinyLibrary, prepared: tuple[QuantizerSpec, tuple[str, ...]]
) -> None:
    library.folders = folders
    with pytest.raises(QuantizationError, match=f"left {len(folders)} checkpoints instead of one behind"):
        _make(library, *prepared)


def test_the_environment_of_gptqmodel_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("GPTQMODEL_CPU_WORKERS", "7")
    monkeypatch.delenv("GPTQMODEL_DISABLE_PACK_EXT", raising=False)
    with _environment():
        assert (os.environ["GPTQMODEL_CPU_WORKERS"], os.environ["GPTQMODEL_DISABLE_PACK_EXT"]) == ("2", "1")
    assert os.environ["GPTQMODEL_CPU_WORKERS"] == "7"
    assert "GPTQMODEL_DISABLE_PACK_EXT" not in os.environ


def test_a_thread_of_gptqmodel_that_fails_does_not_end_the_process() -> None:
    class Worker:
        def _abort_process(self, exc: BaseException) -> str:
            return "ended"

    threads = types.SimpleNamespace(Worker=Worker, other=int, text="_abort_process")
    with _alive(threads):
        assert Worker()._abort_process(ValueError()) is None
    assert Worker()._abort_process(ValueError()) == "ended"


def test_logs_of_gptqmodel_go_where_they_are_told_and_then_where_they_went_before(tmp_path: Path) -> None:
    looper = types.SimpleNamespace(_PROJECT_LOG_DIR="logs")
    seen = []

    def fail() -> None:
        with _logs_in(tmp_path, looper):
            seen.append(looper._PROJECT_LOG_DIR)
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert [*seen, looper._PROJECT_LOG_DIR] == [tmp_path / "logs", "logs"]


@pytest.mark.slow
def test_gptqmodel_leaves_nothing_in_the_working_directory(
    checkpoint_of: Callable[[str], Checkpoint],
    calibration_texts: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec, texts = calibration.prepare(quantize.resolve("gptq-4bit-g64-sym"), {"retain": calibration_texts})
    backend = quantize.backend_of(spec)
    if (reason := backend.unavailable_reason(spec, "cpu")) is not None:
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    backend.quantize(checkpoint_of("llama"), spec, device="cpu", calibration=texts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_failure_in_a_thread_of_gptqmodel_reaches_us_as_a_sentence(
    checkpoint_of: Callable[[str], Checkpoint], calibration_texts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.quantize.runners import gptqmodel as gptqmodel_runner

    spec, texts = calibration.prepare(quantize.resolve("awq-4bit-g64"), {"retain": calibration_texts})
    backend = quantize.backend_of(spec)
    if (reason := backend.unavailable_reason(spec, "cpu")) is not None:
        pytest.skip(reason)
    real = gptqmodel_runner.run
    # Its AWQ layers refuse float32, and do so in a thread while packing.
    monkeypatch.setattr(gptqmodel_runner, "run", lambda *given, **named: real(*given, **(named | {"dtype": "float32"})))
    with pytest.raises(QuantizationError, match=r"awq-4bit-g64 failed inside gptqmodel, which says: .*float32"):
        backend.quantize(checkpoint_of("llama"), spec, device="cpu", calibration=texts)


def test_weights_are_staged_beside_the_tokenizer_without_touching_either(
    checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    source, bare, staging = Path(checkpoint_of("llama").path), tmp_path / "bare", tmp_path / "staging"
    for folder in (bare, staging):
        folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((source / name).read_bytes())
    (bare / "tokenizer.json").write_text("not this one", encoding="utf-8")
    merged = dataclasses.replace(checkpoint_of("llama"), path=str(bare))
    assert _staged(merged, staging) == str(staging)
    assert (staging / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert json.loads((staging / "tokenizer.json").read_text(encoding="utf-8"))["model"]["type"] == "WordLevel"
    assert (bare / "tokenizer.json").read_text(encoding="utf-8") == "not this one"
    linked = sorted(path.name for path in staging.iterdir() if path.is_symlink())
    assert linked == ["config.json", "model.safetensors"]


def test_row_and_column_scales_are_found_and_taken_out() -> None:
    source = torch.Generator().manual_seed(5)
    original = torch.randn(96, 64, generator=source)
    rows, columns = torch.rand(96, generator=source) + 0.5, torch.rand(64, generator=source) * 3 + 0.2
    exact = original * rows[:, None] * columns[None]
    assert torch.allclose(rescaled(original, exact), exact, rtol=1e-4)
    rounded = round_to_grid(exact, bits=4, group_size=32, symmetric=False).dequantize()
    true_error = float((rounded - exact).norm() / exact.norm())
    found = rescaled(original, rounded)
    assert float((rounded - found).norm() / found.norm()) == pytest.approx(true_error, rel=0.03)
    # Against the weights as they were, the scales themselves would be taken for an error.
    assert float((rounded - original).norm() / original.norm()) > 5 * true_error


def test_layers_with_empty_rows_and_columns_have_finite_scales() -> None:
    original = torch.ones(4, 4)
    original[1], original[:, 2] = 0, 0
    found = rescaled(original, 2 * original)
    assert torch.allclose(found, 2 * original)
    assert torch.equal(rescaled(torch.zeros(2, 2), torch.zeros(2, 2)), torch.zeros(2, 2))
