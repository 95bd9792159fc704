"""Survival layer by layer: the same figures as on whole models, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import quantize
from harness.errors import QuantizationError
from harness.quantize.backends import rtn
from harness.quantize.calibration import recipe_of
from harness.quantize.models.dense import block_linears, load_dense, source_weights
from harness.quantize.survival.layer_by_layer import layers_of, stream, streams
from harness.quantize.survival.measure import ALL_LAYERS, measure
from harness.records import Checkpoint

Mover = Callable[[Checkpoint, float], Checkpoint]
Maker = Callable[[str], Checkpoint]
SHAPES = ("llama", "gqa576", "gpt_neox", "mistral", "qwen2", "qwen3", "gemma2")


def _whole(name: str, new: Checkpoint, old: Checkpoint):
    spec = quantize.resolve(name)
    made = [quantize.backend_of(spec).quantize(checkpoint, spec, device="cpu") for checkpoint in (new, old)]
    return measure(*made, new, old)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_figures_are_those_of_whole_models(shape: str, checkpoint_of: Maker, moved: Mover) -> None:
    old = checkpoint_of(shape)
    new = moved(old, 0.004)
    specs = [quantize.resolve("rtn-4bit-g64"), quantize.resolve("rtn-3bit-row-sym")]
    found = stream(new, old, specs)
    for spec in specs:
        rows = found[spec.name]
        assert rows == _whole(spec.name, new, old)
        assert rows[0].layer == ALL_LAYERS
        assert len(rows) == 1 + len(block_linears(load_dense(old, device="cpu")))


LIBRARIES = (
    "bnb-nf4", "bnb-fp4", "bnb-int8", "bnb-nf4-dq", "hqq-4bit-g64", "quanto-int8-row", "quanto-int4-g128",
    "torchao-int4-g64", "torchao-int8-row", "gguf-q4_0",
)  # fmt: skip


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_gives_a_layer_alone_the_codes_of_the_model(name: str, checkpoint_of: Maker, moved: Mover) -> None:
    spec = quantize.resolve(name)
    if reason := quantize.backend_of(spec).unavailable_reason(spec, "cpu"):
        pytest.skip(reason)
    old = checkpoint_of("even128")
    new = moved(old, 0.004)
    assert stream(new, old, [spec])[name] == _whole(name, new, old)


def test_mixed_widths_know_which_block_a_layer_is_in(checkpoint_of: Maker, moved: Mover) -> None:
    old = checkpoint_of("llama")
    new = moved(old, 0.004)
    name = "rtn-mixed-3bit-g64-8bit-attn-down"
    assert stream(new, old, [quantize.resolve(name)])[name] == _whole(name, new, old)


def test_all_quantizers_without_calibration_go_layer_by_layer() -> None:
    for spec in quantize.presets():
        assert streams(spec) == (recipe_of(spec) is None and spec.backend != "reference"), spec.name


def test_codes_that_don_t_say_what_the_library_dequantizes_are_refused(
    checkpoint_of: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = rtn.RoundToNearest.quantize_layer

    def dishonest(self: rtn.RoundToNearest, *layer: Any) -> tuple[Any, Any]:
        read, weight = honest(self, *layer)
        return read, 1.01 * weight

    monkeypatch.setattr(rtn.RoundToNearest, "quantize_layer", dishonest)
    old = checkpoint_of("llama")
    with pytest.raises(QuantizationError, match="differ from what the codes say"):
        stream(old, old, [quantize.resolve("rtn-4bit-g64")])


def test_norms_are_those_of_the_weights(checkpoint_of: Maker, moved: Mover) -> None:
    old = checkpoint_of("llama")
    new = moved(old, 0.01)
    rows = stream(new, old, [quantize.resolve("rtn-4bit-g64")])["rtn-4bit-g64"]
    with source_weights(new) as now, source_weights(old) as then:
        total = 0.0
        for row in rows[1:]:
            update = now[row.layer] - then[row.layer]
            assert row.update_norm == pytest.approx(float(update.norm()), rel=1e-5)
            total += float(update.norm()) ** 2
            # cosine = <dQ, dW> / (|dQ| |dW|) and ratio = <dQ, dW> / |dW|^2.
            ratio = row.survival_ratio / row.cosine
            assert row.norm_ratio == pytest.approx(ratio)
    assert rows[0].update_norm == pytest.approx(total**0.5, rel=1e-5)


def test_no_update_has_no_rank(checkpoint_of: Maker) -> None:
    old = checkpoint_of("llama")
    for row in stream(old, old, [quantize.resolve("rtn-4bit-g64")])["rtn-4bit-g64"]:
        assert (row.update_norm, row.norm_ratio, row.effective_rank) == (0.0, None, None)


def test_layers_are_reported_one_by_one(checkpoint_of: Maker) -> None:
    seen: list[tuple[int, int]] = []
    old = checkpoint_of("llama")
    stream(old, old, [quantize.resolve("rtn-8bit-g64")], on_layer=lambda done, layers: seen.append((done, layers)))
    assert seen == [(done, 14) for done in range(1, 15)]


def test_quantizers_that_look_at_activations_don_t_stream(checkpoint_of: Maker) -> None:
    gptq = quantize.resolve("gptq-4bit-g128-sym")
    with pytest.raises(QuantizationError, match="gptq-4bit-g128-sym can't be measured layer by layer"):
        stream(checkpoint_of("llama"), checkpoint_of("llama"), [gptq])


def test_models_of_different_shapes_are_refused(checkpoint_of: Maker) -> None:
    with pytest.raises(QuantizationError, match="one shape"):
        stream(checkpoint_of("gpt_neox"), checkpoint_of("llama"), [quantize.resolve("rtn-4bit-g64")])


def test_weights_that_config_does_not_describe_are_refused(checkpoint_of: Maker, tmp_path: Path) -> None:
    old = checkpoint_of("llama")
    shutil.copytree(old.path, tmp_path / "bent")
    config = json.loads((tmp_path / "bent/config.json").read_text())
    (tmp_path / "bent/config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    bent = dataclasses.replace(old, path=str(tmp_path / "bent"))
    with pytest.raises(QuantizationError, match="belong together"):
        stream(bent, bent, [quantize.resolve("bnb-nf4")])


def test_layers_of_different_shapes_are_refused(checkpoint_of: Maker) -> None:
    with pytest.raises(QuantizationError, match="one shape"):
        stream(checkpoint_of("even128"), checkpoint_of("llama"), [quantize.resolve("rtn-4bit-g64")])


def test_an_encoder_is_refused_with_a_sentence(tmp_path: Path, checkpoint_of: Maker) -> None:
    from transformers import T5Config, T5EncoderModel

    T5EncoderModel(T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    encoder = dataclasses.replace(checkpoint_of("llama"), path=str(tmp_path / "t5"))
    with pytest.raises(QuantizationError, match="generates no text"):
        layers_of(encoder)
