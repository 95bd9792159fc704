"""Models read block by block compute what whole ones do, bit for bit, and leave nothing behind."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import memory, paths
from harness.errors import InputError, QuantizationError
from harness.quantize import backend_of, model_cache, resolve
from harness.quantize.formats.codes import ReadBack
from harness.quantize.models import streamed
from harness.quantize.models.dense import load_dense
from harness.quantize.runners import layerwise
from harness.records import Checkpoint, QuantizedModel, QuantizerSpec
from harness.score.model.logits import LogitSource
from harness.score.model.threads import lanes_of

IDS = torch.arange(24).reshape(2, 12)
SHAPES = ("llama", "gqa576", "mistral", "qwen2", "qwen3", "gemma2")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "cache"))
    return paths.cache_dir()


def quantized(checkpoint: Checkpoint, name: str, mode: memory.Streaming) -> QuantizedModel:
    spec = resolve(name)
    with memory.streaming(mode):
        return backend_of(spec).quantize(checkpoint, spec, device="cpu")


def logits(model: Any) -> Any:
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits


def in_memory(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.is_meta}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_architecture_s_logits_are_the_whole_model_s(
    checkpoint_of: Callable[[str], Checkpoint], shape: str
) -> None:
    checkpoint = checkpoint_of(shape)
    model = streamed.streamed_model(checkpoint, device="cpu")
    assert torch.equal(logits(model), logits(load_dense(checkpoint, device="cpu")))
    assert not any(".layers." in name for name in in_memory(model))
    assert model.device == torch.device("cpu")
    assert not model.training


@pytest.mark.parametrize(
    "name",
    ["rtn-4bit-g64", "rtn-3bit-g64-sym", "rtn-2bit-g128-mse", "rtn-8bit-row-f32", "rtn-mixed-3bit-g64-8bit-ends"],
)
def test_own_rounding_gives_the_same_proof_and_logits_either_way(
    checkpoint_of: Callable[[str], Checkpoint], name: str
) -> None:
    whole, by_block = (quantized(checkpoint_of("gqa576"), name, mode) for mode in ("never", "always"))
    assert by_block.proof == whole.proof
    assert by_block.proof is not None
    assert by_block.proof.quantized_layers == 14
    assert torch.equal(logits(by_block.model), logits(whole.model))
    assert (whole.streamed, by_block.streamed, dict(by_block.layers)) == (False, True, {})
    assert by_block.quantize_seconds > 0


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("hqq", "hqq-4bit-g64"),
        ("optimum.quanto", "quanto-int4-g128"),
        ("torchao", "torchao-int4-g64"),
        ("gguf", "gguf-q4_0"),
    ],
)
def test_a_library_s_layers_give_the_same_proof_and_logits_either_way(
    checkpoint_of: Callable[[str], Checkpoint], library: str, name: str
) -> None:
    pytest.importorskip(library)
    whole, by_block = (quantized(checkpoint_of("even256"), name, mode) for mode in ("never", "always"))
    assert by_block.proof == whole.proof
    assert torch.equal(logits(by_block.model), logits(whole.model))


def test_the_reference_is_streamed_straight_from_the_checkpoint(
    checkpoint_of: Callable[[str], Checkpoint], own_cache: Path
) -> None:
    made = quantized(checkpoint_of("llama"), "reference", "always")
    assert made.streamed
    assert made.proof is None
    assert torch.equal(logits(made.model), logits(load_dense(checkpoint_of("llama"), device="cpu")))
    assert list(own_cache.glob("quantizing-*")) == []


def test_a_kept_whole_model_is_not_loaded_where_it_must_be_streamed(
    checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_cache, "READ_BYTES_PER_SECOND", 1e15)
    made = {}
    for mode in ("always", "never", "always"):
        with memory.streaming(mode):
            made[mode] = model_cache.quantize_once(
                checkpoint_of("llama"), resolve("rtn-4bit-g64"), device="cpu", calibration=(), cache=tmp_path,
                limit=2**30,
            )  # fmt: skip
        assert len(list((tmp_path / model_cache.FOLDER).glob("*"))) == ("never" in made)
    assert made["always"].streamed
    assert made["always"].proof == made["never"].proof


def test_a_block_is_in_memory_only_while_it_runs(checkpoint_of: Callable[[str], Checkpoint]) -> None:
    model = streamed.streamed_model(checkpoint_of("llama"), device="cpu")
    seen: list[set[str]] = []
    for block in model.model.layers:
        block.mlp.register_forward_hook(lambda *_: seen.append({name.split(".")[2] for name in in_memory(model)
                                                                if ".layers." in name}))  # fmt: skip
    logits(model)
    assert seen == [{"0"}, {"1"}]
    assert not any(".layers." in name for name in in_memory(model))


def test_codes_lie_in_the_cache_for_as_long_as_their_model_lives(
    checkpoint_of: Callable[[str], Checkpoint], own_cache: Path
) -> None:
    made = quantized(checkpoint_of("llama"), "rtn-4bit-g64", "always")
    (place,) = own_cache.glob("quantizing-*")
    assert len(list(place.iterdir())) == 14
    del made
    gc.collect()
    assert not place.exists()


def test_layers_come_back_from_disk_as_they_were() -> None:
    held = streamed.LayersOnDisk()
    scales = torch.rand(4, 2).half()
    layer = ReadBack(
        codes=torch.randint(0, 8, (4, 16), dtype=torch.uint8), scales=scales, zeros=scales, bits=3, group_size=8,
        group_index=torch.arange(16) % 2, step=0.5, rounded_to="bfloat16", scale_bytes=3,
    )  # fmt: skip
    held.put("one", layer)
    held.put("two", replace(layer, zeros=None, offset=4))
    assert list(held) == ["one", "two"]
    assert len(held) == 2
    one, two = held["one"], held["two"]
    assert torch.equal(one.dequantize(), layer.dequantize())
    assert (one.bits, one.group_size, one.step, one.rounded_to, one.scale_bytes) == (3, 8, 0.5, "bfloat16", 3)
    assert one.zeros.dtype == torch.float16
    assert (two.zeros, two.offset, two.book) == (None, 4, None)


def test_a_model_whose_files_name_its_head_otherwise_is_streamed_with_the_same_logits(
    checkpoint_of: Callable[[str], Checkpoint],
) -> None:
    checkpoint = checkpoint_of("gpt_neox")
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    by_block, whole = streamed.streamed_model(checkpoint, device="cpu"), load_dense(checkpoint, device="cpu")
    with torch.inference_mode():
        assert torch.equal(by_block(ids).logits, whole(ids).logits)


@pytest.mark.parametrize("fault", ["missing", "strange", "shape"])
def test_files_that_name_other_weights_are_refused(
    checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path, fault: str
) -> None:
    source = Path(checkpoint_of("llama").path)
    tensors = load_file(source / "model.safetensors")
    norm = tensors.pop("model.layers.1.input_layernorm.weight")
    if fault == "strange":
        tensors |= {"model.layers.1.input_layernorm.weight": norm, "model.layers.1.extra": norm.clone()}
    elif fault == "shape":
        tensors["model.layers.1.input_layernorm.weight"] = norm[:5].contiguous()
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"(missing|surplus|of another shape) model\.layers\.1\.[ie]"):
        streamed.streamed_model(replace(checkpoint_of("llama"), path=str(tmp_path)), device="cpu")


def test_a_base_saved_from_its_bare_body_is_streamed_too(
    checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    source = Path(checkpoint_of("gqa576").path)
    bare = {name.removeprefix("model."): value for name, value in load_file(source / "model.safetensors").items()}
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    model = streamed.streamed_model(replace(checkpoint_of("gqa576"), path=str(tmp_path)), device="cpu")
    assert torch.equal(logits(model), logits(load_dense(checkpoint_of("gqa576"), device="cpu")))


def test_the_rule_counts_codes_and_the_target_of_a_quantized_model(
    checkpoint_of: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(memory, "must_stream", lambda need, what, device: asked.append(need))
    checkpoint = checkpoint_of("llama")
    weights = sum(value.numel() for value in load_file(Path(checkpoint.path) / "model.safetensors").values())
    for device in ("cpu", "cuda:0"):
        for codes in (False, True):
            streamed.must_stream(checkpoint, device=device, quantized=codes)
    assert asked == [4 * weights, 10 * weights, 2 * weights, 6 * weights]


def test_too_little_memory_alone_has_a_model_streamed(
    checkpoint_of: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**20)
    assert quantized(checkpoint_of("llama"), "rtn-4bit-g64", "auto").streamed
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**30)
    assert not quantized(checkpoint_of("llama"), "rtn-4bit-g64", "auto").streamed


def test_a_streamed_layer_that_is_not_what_its_codes_say_is_refused(
    checkpoint_of: Callable[[str], Checkpoint],
) -> None:
    spec = resolve("rtn-4bit-g64")
    backend: Any = backend_of(spec)

    class Cheat:
        def quantize_layer(self, spec: QuantizerSpec, name: str, depth: int, weight: Any) -> tuple[ReadBack, Any]:
            layer, dense = backend.quantize_layer(spec, name, depth, weight)
            return layer, dense + ("o_proj" in name)

    with memory.streaming("always"), pytest.raises(QuantizationError, match=r"in model\.layers\.0\.self_attn\.o_proj"):
        layerwise.quantize_layers(checkpoint_of("llama"), spec, Cheat(), device="cpu")


@pytest.mark.parametrize(
    ("names", "told"),
    [(["model.layers.0.mlp.up_proj"], r"13 of 14 linear layers stay dense, .* model\.layers\.0\.self_attn\.q"),
     (["lm_head"], "stay dense")],
)  # fmt: skip
def test_layers_left_out_or_beside_the_blocks_are_refused(
    checkpoint_of: Callable[[str], Checkpoint], names: list[str], told: str
) -> None:
    spec = resolve("rtn-4bit-g64")
    backend: Any = backend_of(spec)
    weights = load_file(Path(checkpoint_of("llama").path) / "model.safetensors")

    def some(model: Any) -> Iterator[layerwise.Quantized]:
        for name in names:
            layer, dense = backend.quantize_layer(spec, name, 2, weights[f"{name}.weight"].float())
            yield name, layer, dense

    with pytest.raises(QuantizationError, match=told):
        layerwise.stream_layers(checkpoint_of("llama"), spec, some, device="cpu")


def test_a_streamed_model_is_given_one_text_at_a_time(
    checkpoint_of: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.score.model import threads

    monkeypatch.setattr(threads, "_LARGE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    checkpoint = checkpoint_of("llama")
    made = load_dense(checkpoint, device="cpu"), streamed.streamed_model(checkpoint, device="cpu")
    sources = [LogitSource(model) for model in made]
    assert [source.in_memory for source in sources] == [True, False]
    assert [lanes_of(source) for source in sources] == [2, 1]
    assert sources[0].parameters == sources[1].parameters


def test_weights_in_shards_are_streamed(checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    load_dense(checkpoint_of("llama"), device="cpu").bfloat16().save_pretrained(tmp_path, max_shard_size="100KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert len(set(index["weight_map"].values())) > 2
    model = streamed.streamed_model(replace(checkpoint_of("llama"), path=str(tmp_path)), device="cpu")
    assert torch.equal(logits(model), logits(load_dense(checkpoint_of("llama"), device="cpu")))
