"""Packed checkpoints as a whole: what is unpacked, what is taken as it is, and agreement with the libraries."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from harness import quantize
from harness.errors import QuantizationError
from harness.quantize import calibration
from harness.quantize.formats import checkpoint as packed_checkpoint
from harness.quantize.models.dense import block_linears, load_dense
from harness.records import Checkpoint

LAYER = "model.layers.0.mlp.up_proj"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "checkpoint_format": "gptq"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}


def packed_layer(rows: int, width: int, *, awq: bool = False) -> dict[str, torch.Tensor]:
    """A layer whose codes are all 5 and whose zero points are all 8, so every weight is -3 scales."""
    groups = width // 64
    fives, eights = torch.tensor(0x55555555, dtype=torch.int32), -(2**31) + 0x08888888
    if awq:
        qweight, qzeros = torch.empty(width, rows // 8), torch.full((groups, rows // 8), eights, dtype=torch.int32)
    else:
        # GPTQ stores a zero point of 8 as 7.
        qweight, qzeros = torch.empty(width // 8, rows), torch.full((groups, rows // 8), 0x77777777, dtype=torch.int32)
    return {
        "qweight": torch.full_like(qweight, 0, dtype=torch.int32) + fives,
        "qzeros": qzeros,
        "scales": torch.full((groups, rows), 0.25, dtype=torch.float16),
    }


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(config: dict[str, Any] | None, tensors: dict[str, torch.Tensor], *, awq: bool = False) -> Path:
        layer = {f"{LAYER}.{part}": tensor for part, tensor in packed_layer(192, 128, awq=awq).items()}
        save_file({**layer, **tensors}, tmp_path / "model.safetensors")
        told = {} if config is None else {"quantization_config": config}
        (tmp_path / "config.json").write_text(json.dumps(told), encoding="utf-8")
        return tmp_path

    return save


@pytest.mark.parametrize(("config", "awq"), [(GPTQ, False), (AWQ, True)])
def test_quantized_layers_are_unpacked_and_all_other_tensors_kept(
    config: dict[str, Any], awq: bool, saved: Callable[..., Path]
) -> None:
    norm = torch.linspace(0, 1, 128)
    got = packed_checkpoint.read(saved(config, {"model.norm.weight": norm}, awq=awq))
    assert list(got.layers) == [LAYER]
    assert torch.equal(got.layers[LAYER].dequantize(), torch.full((192, 128), -0.75))
    assert list(got.others) == ["model.norm.weight"]
    assert torch.equal(got.others["model.norm.weight"], norm)
    assert got.config == config


def test_the_config_may_stand_in_a_file_of_its_own(saved: Callable[..., Path]) -> None:
    folder = saved(None, {})
    with pytest.raises(QuantizationError, match="holds no quantization_config"):
        packed_checkpoint.read(folder)
    (folder / "quantize_config.json").write_text(json.dumps(GPTQ), encoding="utf-8")
    assert list(packed_checkpoint.read(folder).layers) == [LAYER]


@pytest.mark.parametrize("broken", ["[]", "{", '{"quantization_config": "gptq"}'])
def test_a_config_that_is_none_is_refused(broken: str, saved: Callable[..., Path]) -> None:
    folder = saved(GPTQ, {})
    (folder / "config.json").write_text(broken, encoding="utf-8")
    with pytest.raises(QuantizationError, match="holds no quantization_config"):
        packed_checkpoint.read(folder)


def test_a_folder_without_packed_layers_is_refused(tmp_path: Path) -> None:
    save_file({"model.norm.weight": torch.ones(4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": GPTQ}), encoding="utf-8")
    with pytest.raises(QuantizationError, match="holds no packed layer"):
        packed_checkpoint.read(tmp_path)


def test_tensors_and_layers_are_put_into_a_dense_model(
    saved: Callable[..., Path], checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    norm = torch.linspace(1, 2, 128)
    packed = packed_checkpoint.read(saved(GPTQ, {"model.norm.weight": norm}))
    model, untouched = (load_dense(checkpoint_of("llama"), device="cpu") for _ in range(2))
    packed_checkpoint.fill(model, packed)
    assert torch.equal(model.model.norm.weight, norm)
    assert bool((block_linears(model)[LAYER].weight == -0.75).all())
    other = "model.layers.1.mlp.up_proj"
    assert torch.equal(block_linears(model)[other].weight, block_linears(untouched)[other].weight)


def test_a_bias_of_zeros_that_the_model_lacks_is_passed_over_and_any_other_is_not(
    saved: Callable[..., Path], checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    model = load_dense(checkpoint_of("llama"), device="cpu")
    packed = packed_checkpoint.read(saved(GPTQ, {f"{LAYER}.bias": torch.zeros(192)}))
    packed_checkpoint.fill(model, packed)
    real = dataclasses.replace(packed, others={f"{LAYER}.bias": torch.ones(192)})
    with pytest.raises(QuantizationError, match=rf"holds {LAYER}\.bias of shape \(192,\), and the model lacks it"):
        packed_checkpoint.fill(model, real)


def test_a_tensor_of_another_shape_is_refused(
    saved: Callable[..., Path], checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    packed = packed_checkpoint.read(saved(GPTQ, {"model.norm.weight": torch.ones(64)}))
    with pytest.raises(QuantizationError, match=r"model\.norm\.weight of shape \(64,\), and the model has it as"):
        packed_checkpoint.fill(load_dense(checkpoint_of("llama"), device="cpu"), packed)


@pytest.fixture
def library_output(
    checkpoint_of: Callable[[str], Checkpoint], calibration_texts: tuple[str, ...], tmp_path: Path
) -> Callable[[str], tuple[Path, packed_checkpoint.PackedCheckpoint]]:
    """Has a backend's library quantize, and keeps what it saved."""

    def make(name: str) -> tuple[Path, packed_checkpoint.PackedCheckpoint]:
        import shutil

        from harness.quantize.runners import calibrated

        spec, texts = calibration.prepare(quantize.resolve(name), {"retain": calibration_texts})
        backend = quantize.backend_of(spec)
        reason = backend.unavailable_reason(spec, "cpu")
        if reason is not None:
            pytest.skip(reason)
        kept = tmp_path / "kept"
        original = calibrated._saved_in

        def keep(place: Path, *rest: Any) -> packed_checkpoint.PackedCheckpoint:
            shutil.copytree(next(place.rglob("config.json")).parent, kept)
            return original(place, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(calibrated, "_saved_in", keep)
            backend.quantize(checkpoint_of("llama"), spec, device="cpu", calibration=texts)
        return kept, packed_checkpoint.read(kept)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gptq-4bit-g64-sym", "gptq-3bit-g64-act", "gptq-8bit-row-sym", "gptq-2bit-g128"])
def test_gptq_is_unpacked_to_the_weights_that_gptqmodel_itself_dequantizes(
    name: str, library_output: Callable[[str], tuple[Path, packed_checkpoint.PackedCheckpoint]]
) -> None:
    folder, packed = library_output(name)
    from gptqmodel import BACKEND, GPTQModel

    own = GPTQModel.load(str(folder), device="cpu", dtype=torch.float16, backend=BACKEND.GPTQ_TORCH)
    compared = 0
    for module, layer in own.model.named_modules():
        if hasattr(layer, "dequantize_weight"):
            theirs = layer.dequantize_weight().T.float()
            assert torch.equal(packed.layers[module].dequantize(), theirs), module
            compared += 1
    assert compared == 14 == len(packed.layers)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["awq-4bit-g64", "awq-4bit-g32-sym"])
def test_awq_is_unpacked_to_the_weights_that_gptqmodel_itself_dequantizes(
    name: str, library_output: Callable[[str], tuple[Path, packed_checkpoint.PackedCheckpoint]]
) -> None:
    folder, packed = library_output(name)
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    for module, layer in packed.layers.items():
        parts = (tensors[f"{module}.{part}"] for part in ("qweight", "qzeros", "scales"))
        assert torch.equal(layer.dequantize(), dequantize_gemm(*parts, 4, layer.group_size).T.float()), module
    assert len(packed.layers) == 14


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("autoround-4bit-g64-sym-iters0", "qlinear_torch_zp"),
        ("autoround-3bit-g64-sym-iters0", "qlinear_torch_zp"),
        ("autoround-2bit-g64-iters0", "qlinear_torch"),
    ],
)
def test_autoround_is_unpacked_to_the_weights_that_its_own_layers_hold(
    name: str, module: str, library_output: Callable[[str], tuple[Path, packed_checkpoint.PackedCheckpoint]]
) -> None:
    folder, packed = library_output(name)
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    library = importlib.import_module(f"auto_round_extension.torch.{module}")
    for layer_name, layer in packed.layers.items():
        rows, width = layer.codes.shape
        own = library.QuantLinear(layer.bits, layer.group_size, width, rows, bias=False)
        for part in ("qweight", "qzeros", "scales"):
            setattr(own, part, tensors[f"{layer_name}.{part}"])
        with torch.no_grad():
            theirs = own(torch.eye(width, dtype=torch.float16)).T.float()
        # Its layer multiplies in float16, and by the identity that is exact.
        assert torch.equal(layer.dequantize(), theirs), layer_name
