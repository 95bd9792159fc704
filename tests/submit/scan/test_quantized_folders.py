"""Folders of quantized checkpoints: what the scan lets in, and what it refuses before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import quantized_files
import torch
from hub_listing import listing
from quantized_files import GPTQ_CONFIG, write_bnb, write_gguf, write_gptq
from safetensors.torch import load_file, save_file

from harness.errors import InputError, ManifestError, UnsafeSubmissionError
from harness.quantize.formats import checkpoint as packed_checkpoint
from harness.quantize.submitted_spec import spec_of
from harness.submit.checkpoint import prepare
from harness.submit.manifest import load as manifest
from harness.submit.scan import folder as folder_scan
from harness.submit.weight_files import weights_digest

Writer = Callable[..., Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def gptq(model_folder: Path, tmp_path: Path) -> Path:
    return write_gptq(model_folder, tmp_path / "gptq")


@pytest.fixture
def gguf(model_folder: Path, tmp_path: Path) -> Path:
    return write_gguf(model_folder, tmp_path / "gguf", "Q8_0")


@pytest.fixture
def enter(add: Writer, board: Path, controls: None) -> Callable[..., None]:
    """Submits a folder of weights as a quantized checkpoint and scans it."""

    def scan(folder: Path, **fields: Any) -> None:
        add("entry", kind="quantized_checkpoint", weights_from=folder, **fields)
        known = manifest.load_all(board)
        folder_scan.scan(known["entry"], known)

    return scan


def refused(enter: Callable[..., None], folder: Path) -> str:
    with pytest.raises(UnsafeSubmissionError) as error:
        enter(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def _config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    told = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in told.items() if value is not None}), encoding="utf-8")
    return folder


def test_a_gptq_folder_is_let_in(gptq: Path, enter: Callable[..., None]) -> None:
    enter(gptq)


def test_a_gguf_folder_is_let_in_with_the_config_of_its_model(gguf: Path, enter: Callable[..., None]) -> None:
    enter(gguf)


@pytest.mark.parametrize("options", [{"load_in_4bit": True, "bnb_4bit_use_double_quant": True}, {"load_in_8bit": True}])
def test_a_bitsandbytes_folder_is_let_in(
    options: dict[str, Any], model_folder: Path, tmp_path: Path, enter: Callable[..., None]
) -> None:
    pytest.importorskip("bitsandbytes")
    enter(write_bnb(model_folder, tmp_path / "bnb", **options))


def test_how_it_is_packed_is_told_from_the_head_alone(
    gptq: Path, gguf: Path, add: Writer, board: Path, controls: None, tmp_path: Path
) -> None:
    for name, folder in (("packed", gptq), ("file", gguf)):
        add(name, kind="quantized_checkpoint", weights_from=folder)
    known = manifest.load_all(board)
    assert prepare.quantization_config(known["packed"], cache=tmp_path) == GPTQ_CONFIG
    blocks = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96)
    assert prepare.quantization_config(known["file"], cache=tmp_path) == {
        "quant_method": "gguf", "types": {"Q8_0": blocks},
    }  # fmt: skip


def test_the_digest_covers_the_gguf_file(gguf: Path, add: Writer, board: Path, controls: None) -> None:
    folder = add("entry", kind="quantized_checkpoint", weights_from=gguf)
    known = manifest.load_all(board)
    before = weights_digest(known["entry"])
    path = folder / "model" / "model.gguf"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert weights_digest(known["entry"]) != before


def test_of_a_hub_repository_only_the_config_is_fetched_to_plan(
    gptq: Path, add: Writer, board: Path, controls: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[list[str]] = []

    def snapshot_download(*, repo_id: str, revision: str, cache_dir: Path, allow_patterns: list[str]) -> Path:
        asked.append(allow_patterns)
        shutil.copy(gptq / "config.json", cache_dir)
        return cache_dir

    monkeypatch.setattr(huggingface_hub, "model_info", lambda name, **asked: listing(gptq))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    add("entry", kind="quantized_checkpoint", weights="hf://owner/name", revision=COMMIT)
    known = manifest.load_all(board)
    for _ in range(2):
        assert prepare.quantization_config(known["entry"], cache=tmp_path / "cache") == GPTQ_CONFIG
    assert asked == [["config.json"]]


def test_a_hub_checkpoint_is_scanned_between_downloading_and_loading(
    gptq: Path, add: Writer, board: Path, controls: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def snapshot_download(*, repo_id: str, revision: str, cache_dir: Path, allow_patterns: list[str]) -> Path:
        return shutil.copytree(gptq, cache_dir / "snapshot")

    monkeypatch.setattr(huggingface_hub, "model_info", lambda name, **asked: listing(gptq))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    add("entry", kind="quantized_checkpoint", weights="hf://owner/name", revision=COMMIT)
    known = manifest.load_all(board)
    made = prepare.prepare(known["entry"], known, cache=tmp_path / "cache")
    assert Path(made.path).is_relative_to(tmp_path / "cache")
    (Path(made.path) / "evil.py").write_text("print()", encoding="utf-8")
    with pytest.raises(UnsafeSubmissionError, match=r"\.py files are not accepted"):
        prepare.prepare(known["entry"], known, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": None}, "it has no quantization_config"),
        ({"quantization_config": {"quant_method": "exl2"}}, "in the format of ExLlamaV2, which is not read"),
        ({"quantization_config": GPTQ_CONFIG | {"bits": 7}}, "`bits` is 7"),
        ({"quantization_config": GPTQ_CONFIG | {"meta": {"auto_map": "x"}}}, "it names code to run (auto_map)"),
        ({"quantization_config": GPTQ_CONFIG | {"run": "me"}}, "`run` is 'me', and no reader knows"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, and the weights have 2 layers"),
        ({"intermediate_size": 960}, "intermediate_size is 960"),
        ({"vocab_size": 1 << 30}, "make embeddings of shape"),
        ({"per_layer_config": {"0": {}}}, "`per_layer_config` is"),
    ],
)
def test_a_config_that_is_not_its_weights_own_is_refused(
    changes: dict[str, Any], message: str, gptq: Path, enter: Callable[..., None]
) -> None:
    assert message in refused(enter, _config(gptq, **changes))


@pytest.mark.parametrize("claimed", [95, 1 << 20])
def test_the_width_of_bytes_in_a_column_is_that_of_their_codes(
    claimed: int, model_folder: Path, tmp_path: Path, enter: Callable[..., None]
) -> None:
    pytest.importorskip("bitsandbytes")
    folder = _config(write_bnb(model_folder, tmp_path / "bnb", load_in_4bit=True), intermediate_size=claimed)
    assert "no MLP tensor has that width" in refused(enter, folder)


def test_a_truncated_tensor_is_refused(gptq: Path, enter: Callable[..., None]) -> None:
    path = gptq / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "it is cut off" in refused(enter, gptq)


def test_a_scale_that_is_no_number_is_refused(gptq: Path, enter: Callable[..., None]) -> None:
    tensors = load_file(gptq / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.scales"][0, 0] = float("inf")
    save_file(tensors, gptq / "model.safetensors")
    assert "'model.layers.0.mlp.up_proj.scales' holds NaN or infinity" in refused(enter, gptq)


def test_types_that_no_format_packs_in_are_refused(gptq: Path, enter: Callable[..., None]) -> None:
    tensors = load_file(gptq / "model.safetensors")
    save_file(tensors | {"model.more": torch.zeros(2, dtype=torch.float64)}, gptq / "model.safetensors")
    assert "is stored as 'F64', and BF16, F16, F32, U8, I8, I32, I64 are accepted" in refused(enter, gptq)


def test_packed_integers_come_in_as_quantized_checkpoints_alone(
    gptq: Path, add: Writer, board: Path, controls: None
) -> None:
    add("entry", weights_from=_config(gptq, quantization_config=None))
    known = manifest.load_all(board)
    with pytest.raises(UnsafeSubmissionError, match="is stored as 'I32', and BF16, F16, F32 are accepted"):
        folder_scan.scan(known["entry"], known)


def test_a_gguf_file_comes_in_as_a_quantized_checkpoint_alone_and_alone_in_its_folder(
    gguf: Path, gptq: Path, enter: Callable[..., None], add: Writer, board: Path
) -> None:
    add("dense", weights_from=gguf)
    known = manifest.load_all(board)
    with pytest.raises(UnsafeSubmissionError, match="it is a GGUF file, which is never opened here"):
        folder_scan.scan(known["dense"], known)
    shutil.copy(gptq / "model.safetensors", gguf)
    assert "it holds more than one model" in refused(enter, gguf)


@pytest.mark.parametrize("beside", ["second.gguf", "deeper/model.gguf"])
def test_a_second_gguf_file_is_refused(beside: str, gguf: Path, enter: Callable[..., None]) -> None:
    (gguf / beside).parent.mkdir(exist_ok=True)
    shutil.copy(gguf / "model.gguf", gguf / beside)
    assert ("more than one model" if beside == "second.gguf" else "a GGUF file") in refused(enter, gguf)


def test_a_gguf_file_that_claims_a_huge_tensor_is_refused(gguf: Path, enter: Callable[..., None]) -> None:
    path = gguf / "model.gguf"
    content = path.read_bytes()
    # After name and rank stands the number of columns, then that of rows.
    place = content.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 8
    path.write_bytes(content[:place] + (1 << 32).to_bytes(8, "little") + content[place + 8 :])
    told = refused(enter, gguf)
    assert "overlap another tensor's" in told or "its tensors need" in told


def test_a_gguf_file_that_leaves_layers_dense_is_refused(
    model_folder: Path, tmp_path: Path, enter: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def halves(kind: str, shape: tuple[int, ...], source: object) -> numpy.ndarray:
        assert kind == "F16"
        return numpy.zeros((shape[0], 2 * shape[1]), dtype=numpy.uint8)

    monkeypatch.setattr(quantized_files, "random_blocks", halves)
    folder = write_gguf(model_folder, tmp_path / "gguf", pick=lambda name: "F16" if "down_proj" in name else None)
    assert "it leaves layers in F16: quantize every matrix inside the blocks" in refused(enter, folder)


def test_a_gguf_file_beside_a_config_of_another_packing_is_refused(gguf: Path, enter: Callable[..., None]) -> None:
    assert "a GGUF file says itself how it is packed" in refused(enter, _config(gguf, quantization_config=GPTQ_CONFIG))


def test_a_folder_without_a_config_is_refused_when_it_is_planned(
    gptq: Path, add: Writer, board: Path, controls: None, tmp_path: Path
) -> None:
    folder = add("entry", kind="quantized_checkpoint", weights_from=gptq)
    (folder / "model" / "config.json").unlink()
    known = manifest.load_all(board)
    with pytest.raises(InputError, match="nothing else says how the weights are packed"):
        prepare.quantization_config(known["entry"], cache=tmp_path)
    with pytest.raises(UnsafeSubmissionError, match="there is no such file"):
        folder_scan.scan(known["entry"], known)


def test_the_16_bit_base_is_scanned_too(
    gptq: Path, enter: Callable[..., None], board: Path, model_folder: Path
) -> None:
    (board / "target" / "model" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UnsafeSubmissionError, match="target"):
        enter(gptq, base_model="target")


@pytest.mark.parametrize("role", ["target", "retrain"])
def test_a_control_can_not_be_quantized(role: str, gptq: Path, add: Writer, board: Path) -> None:
    add("entry", kind="quantized_checkpoint", role=role, weights_from=gptq)
    with pytest.raises(ManifestError, match="a control is quantized like the entries: give its full_model"):
        manifest.load_all(board)


def test_a_base_that_is_no_full_model_is_refused(gptq: Path, add: Writer, board: Path, controls: None) -> None:
    add("other", kind="quantized_checkpoint", weights_from=gptq)
    add("entry", kind="quantized_checkpoint", weights_from=gptq, base_model="other")
    with pytest.raises(ManifestError, match="a quantized_checkpoint: a quantized checkpoint is made from a full_model"):
        manifest.load_all(board)


@pytest.mark.parametrize("name", ["gptq_model-4bit-128g", "model-4bit"])
def test_quantized_weights_may_have_any_name(name: str, gptq: Path, enter: Callable[..., None]) -> None:
    (gptq / "model.safetensors").rename(gptq / f"{name}.safetensors")
    enter(gptq)


def _beside(folder: Path, name: str = "quantize_config.json", keep: bool = False, **changes: Any) -> Path:
    """Moves the settings into a file of the library's own."""
    told = dict(GPTQ_CONFIG) | changes
    told.pop("quant_method")
    (folder / name).write_text(json.dumps(told), encoding="utf-8")
    return folder if keep else _config(folder, quantization_config=None)


def test_settings_in_a_file_of_their_own_are_read_as_those_of_the_config(
    gptq: Path, add: Writer, board: Path, controls: None, tmp_path: Path
) -> None:
    whole = packed_checkpoint.read(gptq)
    before = weights_digest(_known(add("in-config", kind="quantized_checkpoint", weights_from=gptq), board))
    alone = add("alone", kind="quantized_checkpoint", weights_from=_beside(gptq))
    known = manifest.load_all(board)
    assert folder_scan.scan(known["alone"], known) == (
        "quantization_config: ignored, since they change no code: lm_head, meta.",
    )
    assert prepare.quantization_config(known["alone"], cache=tmp_path) == GPTQ_CONFIG
    again = packed_checkpoint.read(alone / "model")
    assert all(torch.equal(layer.dequantize(), again.layers[name].dequantize()) for name, layer in whole.layers.items())
    digest = weights_digest(known["alone"])
    _beside(alone / "model", keep=True, bits=8)
    assert len({before, digest, weights_digest(known["alone"])}) == 3


def _known(folder: Path, board: Path) -> Any:
    return manifest.load_all(board)[folder.name]


def test_two_files_that_contradict_each_other_are_refused(gptq: Path, enter: Callable[..., None]) -> None:
    told = refused(enter, _beside(gptq, keep=True, group_size=64))
    assert "`group_size` is 32 in config.json and 64 in quantize_config.json: keep the" in told


def test_dense_layers_in_a_packed_checkpoint_are_found_before_anything_runs(
    gptq: Path, model_folder: Path, enter: Callable[..., None]
) -> None:
    tensors, layer = load_file(gptq / "model.safetensors"), "model.layers.1.mlp.down_proj"
    dense = {name: tensor for name, tensor in tensors.items() if not name.startswith(layer)}
    weight = load_file(model_folder / "model.safetensors")[f"{layer}.weight"]
    save_file(dense | {f"{layer}.weight": weight}, gptq / "model.safetensors")
    assert f"it leaves 1 layers of the blocks in 16 bit, first {layer}.weight" in refused(enter, gptq)


def test_a_gguf_file_of_another_architecture_is_found_before_anything_runs(
    gguf: Path, enter: Callable[..., None]
) -> None:
    told = refused(enter, _config(gguf, model_type="gemma", head_dim=16))
    assert "GGUF files of gemma models are not read: those of llama, mistral, qwen2, qwen3 are" in told


def test_the_label_of_a_bitsandbytes_file_names_its_real_block(
    model_folder: Path, tmp_path: Path, add: Writer, board: Path, controls: None
) -> None:
    pytest.importorskip("bitsandbytes")
    folder = write_bnb(model_folder, tmp_path / "bnb", load_in_4bit=True)
    for name, count in (("as-saved", 1), ("wider", 2)):
        tensors = load_file(folder / "model.safetensors")
        scales = {key: each[::count].clone() if key.endswith(".absmax") else each for key, each in tensors.items()}
        save_file(scales, folder / "model.safetensors")
        add(name, kind="quantized_checkpoint", weights_from=folder)
    known = manifest.load_all(board)
    specs = [spec_of(prepare.quantization_config(known[name], cache=tmp_path)) for name in ("as-saved", "wider")]
    assert [(spec.group_size, spec.label.rpartition(" ")[2]) for spec in specs] == [(64, "64"), (128, "128")]
