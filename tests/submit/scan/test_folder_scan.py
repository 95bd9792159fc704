"""Hostile submissions: each is refused with its own sentence, before a library loads any weight."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import UnsafeSubmissionError
from harness.submit.checkpoint import prepare
from harness.submit.manifest import load as manifest
from harness.submit.scan import folder as folder_scan
from harness.submit.scan.safetensors import _TOO_LARGE, DTYPE_NAMES, check_numbers, read_header

Writer = Callable[..., Path]


def _write(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """Writes a safetensors file by hand, as strange as wanted."""
    told = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(told) if length is None else length) + told + data)
    return path


def _entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.fixture
def scan(add: Writer, board: Path, controls: None, model_folder: Path, adapter_folder: Path) -> Callable[..., None]:
    """Makes an entry, lets a test spoil its weights, and scans it."""

    def run(spoil: Callable[[Path], object] = lambda model: None, *, adapter: bool = False) -> None:
        fields = {"kind": "lora_adapter", "base_model": "target"} if adapter else {}
        folder = add("entry", weights_from=adapter_folder if adapter else model_folder, **fields)
        spoil(folder / "model")
        submissions = manifest.load_all(board)
        folder_scan.scan(submissions["entry"], submissions)

    return run


def _config(model: Path, name: str = "config.json", **changes: Any) -> None:
    path = model / name
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def _numbers(model: Path, value: float, name: str = "model.safetensors") -> None:
    """Overwrites the last number of a file's data."""
    path = model / name
    tensors = read_header(path)
    last = max(tensors.values(), key=lambda tensor: tensor.end)
    wide = struct.pack("<f", value)
    with path.open("r+b") as file:
        file.seek(last.end - (2 if last.dtype == "BF16" else 4))
        file.write(wide[2:] if last.dtype == "BF16" else wide)


@pytest.mark.parametrize("adapter", [False, True])
def test_an_honest_submission_passes(scan: Callable[..., None], adapter: bool) -> None:
    scan(adapter=adapter)


def _pickle(path: Path, protocol: int = 4) -> None:
    path.write_bytes(pickle.dumps({"w": [1.0]}, protocol=protocol))


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"x")


def _npz(path: Path) -> None:
    numpy.save(path.open("wb"), numpy.zeros(2))


SPOILERS: list[tuple[str, Callable[[Path], object]]] = [
    (r"it is a pickle", lambda m: _pickle(m / "model.safetensors")),
    (r"it is a pickle", lambda m: _pickle(m / "notes.txt", 2)),
    (r"it is a pickle", lambda m: _pickle(m / "README", 5)),
    (r"it is a zip archive", lambda m: _zip(m / "tokenizer.model")),
    (r"it is a NumPy file", lambda m: _npz(m / "data.json")),
    (r"it is a GGUF file", lambda m: (m / "x.md").write_bytes(b"GGUF\x03\0\0\0")),
    (r"it is an HDF5 file", lambda m: (m / "x.txt").write_bytes(b"\x89HDF\r\n\x1a\n")),
    (r"it is a program", lambda m: (m / "run.txt").write_bytes(b"\x7fELF\x02")),
    (r"\.bin files are not accepted", lambda m: (m / "pytorch_model.bin").write_bytes(b"text")),
    (r"\.py files are not accepted", lambda m: (m / "modeling_x.py").write_text("import os")),
    (r"\.pt files are not accepted", lambda m: (m / "deep").mkdir() or (m / "deep" / "a.pt").write_bytes(b"c")),
    (r"binary and of no accepted kind", lambda m: (m / "weights.dat").write_bytes(b"a\0b")),
    (r"link out of the submission's folder", lambda m: (m / "link.txt").symlink_to("/etc/hostname")),
    (r"link out of the submission's folder", lambda m: (m / "link").symlink_to("/etc")),
    (r"neither a file nor a folder", lambda m: (m / "gone.txt").symlink_to("nothing")),
    (r"names code to run \(auto_map\)", lambda m: _config(m, auto_map={"AutoModel": "x.Y"})),
    (r"names code to run \(trust_remote_code\)", lambda m: _config(m, trust_remote_code=True)),
    (r"names code to run \(auto_map\)", lambda m: _config(m, rope_parameters={"a": [{"auto_map": 1}]})),
    (r"tokenizer_config\.json: it names code", lambda m: _config(m, "tokenizer_config.json", auto_map={})),
    (r"`attn_implementation` is 'kernels/x', which", lambda m: _config(m, attn_implementation="kernels/x")),
    (r"describes quantized weights", lambda m: _config(m, quantization_config={"bits": 4})),
    (r"model_type 'deepseek' can't be scored", lambda m: _config(m, model_type="deepseek")),
    (r"embeddings of shape \(1000000000, 64\)", lambda m: _config(m, vocab_size=10**9)),
    (r"embeddings of shape \(80, 100000\)", lambda m: _config(m, hidden_size=100_000)),
    (r"num_hidden_layers is 4000, and the weights have 2", lambda m: _config(m, num_hidden_layers=4000)),
    (r"intermediate_size is 1000000", lambda m: _config(m, intermediate_size=10**6)),
    (r"wider than any tensor", lambda m: _config(m, num_attention_heads=10**6)),
    (r"`head_dim` is 1000000000, and accepted is a whole number from 1", lambda m: _config(m, head_dim=10**9)),
    (r"`vocab_size` is '80', and accepted is a whole number above 0", lambda m: _config(m, vocab_size="80")),
    (r"number above", lambda m: _config(m, rope_theta=1e300)),
    (r"config\.json: it holds NaN", lambda m: _config(m, rms_norm_eps=float("nan"))),
    (r"config\.json: the key 'a' is given twice", lambda m: (m / "config.json").write_text('{"a": 1, "a": 2}')),
    (r"config\.json: it is not JSON", lambda m: (m / "config.json").write_text("{")),
    (r"config\.json: it is not JSON", lambda m: (m / "config.json").write_text("[" * 100_000)),
    (r"config\.json: it must be a JSON mapping", lambda m: (m / "config.json").write_text("[]")),
    (r"config\.json: there is no such file", lambda m: (m / "config.json").unlink()),
    (r"model\.safetensors is missing", lambda m: (m / "model.safetensors").unlink()),
    (r"extra\.safetensors belongs to nothing", lambda m: _write(m / "extra.safetensors", {"a": 1})),
    (r"header of 9999999 bytes in", lambda m: _write(m / "model.safetensors", {}, length=9_999_999)),
    (r"cut off or no safetensors file", lambda m: (m / "model.safetensors").write_bytes(b"1234")),
    (r"cut off: its header describes", lambda m: _truncate(m / "model.safetensors", -10)),
    (r"holds NaN or infinity", lambda m: _numbers(m, float("nan"))),
    (r"holds NaN or infinity", lambda m: _numbers(m, float("-inf"))),
    (r"points at '\.\./model\.safetensors'", lambda m: _index(m, {"a": "../model.safetensors"})),
    (r"points at '/etc/x\.safetensors'", lambda m: _index(m, {"a": "/etc/x.safetensors"})),
    (r"points at 'pytorch_model\.bin'", lambda m: _index(m, {"a": "pytorch_model.bin"})),
    (r"points at 'no\.safetensors', which is not there", lambda m: _index(m, {"a": "no.safetensors"})),
    (r"not where the index says", lambda m: _index(m, {"a": "model.safetensors"})),
]  # fmt: skip


def _truncate(path: Path, by: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:by])


def _index(model: Path, weight_map: dict[str, str]) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize(("sentence", "spoil"), SPOILERS, ids=[f"{n}-{s[:40]}" for n, (s, _) in enumerate(SPOILERS)])
def test_a_hostile_model_is_refused_with_its_own_sentence(
    scan: Callable[..., None], sentence: str, spoil: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors
    import torch
    import transformers

    def loaded(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a weight was loaded")

    monkeypatch.setattr(torch, "load", loaded)
    monkeypatch.setattr(pickle, "load", loaded)
    monkeypatch.setattr(safetensors, "safe_open", loaded)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", loaded)
    with pytest.raises(UnsafeSubmissionError, match=sentence):
        scan(spoil)


ADAPTER_SPOILERS: list[tuple[str, Callable[[Path], object]]] = [
    (r"`peft_type` is 'IA3'", lambda m: _adapter(m, peft_type="IA3")),
    (r"`r` is 100000", lambda m: _adapter(m, r=100_000)),
    (r"`r` is -4", lambda m: _adapter(m, r=-4)),
    (r"`r` is 'x'", lambda m: _adapter(m, r="x")),
    (r"`lora_alpha` is 1e\+40", lambda m: _adapter(m, lora_alpha=1e40)),
    (r"missing are none; surplus are model", lambda m: _adapter(m, target_modules="(a+)+$")),
    (r"missing are none; surplus are model", lambda m: _adapter(m, target_modules=["q_proj|.*"])),
    (r"`target_modules` reaches model\.layers", lambda m: _adapter(m, target_modules=".*norm")),
    (r"`rank_pattern` is", lambda m: _adapter(m, rank_pattern={"(a+": 4})),
    (r"`modules_to_save` is .*accepted is nothing", lambda m: _adapter(m, modules_to_save=["lm_head"])),
    (r"`layer_replication` is", lambda m: _adapter(m, layer_replication=[[0, 9999]])),
    (r"`init_lora_weights` is 'pissa'", lambda m: _adapter(m, init_lora_weights="pissa")),
    (r"`bias` is 'both'", lambda m: _adapter(m, bias="both")),
    (r"`task_type` is", lambda m: _adapter(m, task_type="SEQ_CLS")),
    (r"`new_key` is no field of peft", lambda m: _adapter(m, new_key=1)),
    (r"names code to run", lambda m: _adapter(m, auto_map={})),
    (r"of the rank that `r` says", lambda m: _adapter(m, r=8)),
    (r"lora_magnitude_vector", lambda m: _adapter(m, use_dora=True)),
    (r"holds NaN or infinity", lambda m: _numbers(m, float("inf"), "adapter_model.safetensors")),
    (r"is neither a factor of LoRA nor a copy", lambda m: _factors(m, {"lm_head.weight": [4, 4]})),
    (r"and needs lora_A, lora_B", lambda m: _factors(m, {"base_model.model.x.lora_A.weight": [4, 4]})),
    (r"the base model has no such layer", lambda m: _factors(m, _pair("model.layers.9.mlp.up_proj", 96, 64))),
    (r"made for another shape", lambda m: _factors(m, _pair("model.layers.0.mlp.up_proj", 96, 65))),
]  # fmt: skip


def _adapter(model: Path, **changes: Any) -> None:
    _config(model, "adapter_config.json", **changes)


def _pair(module: str, rows: int, width: int) -> dict[str, list[int]]:
    name = f"base_model.model.{module}"
    return {f"{name}.lora_A.weight": [4, width], f"{name}.lora_B.weight": [rows, 4]}


def _factors(model: Path, shapes: dict[str, list[int]]) -> None:
    header, position = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * shape[1]
        header[name] = _entry(shape, position, position + size)
        position += size
    _write(model / "adapter_model.safetensors", header, b"\0" * position)


@pytest.mark.parametrize(
    ("sentence", "spoil"), ADAPTER_SPOILERS, ids=[f"{n}-{s[:40]}" for n, (s, _) in enumerate(ADAPTER_SPOILERS)]
)
def test_a_hostile_adapter_is_refused_with_its_own_sentence(
    scan: Callable[..., None], sentence: str, spoil: Callable[[Path], object]
) -> None:
    with pytest.raises(UnsafeSubmissionError, match=sentence):
        scan(spoil, adapter=True)


def test_a_hostile_base_or_target_is_found_through_its_entry(
    add: Writer, board: Path, controls: None, adapter_folder: Path, model_folder: Path
) -> None:
    add("adapter", kind="lora_adapter", base_model="target", weights_from=adapter_folder)
    add("full", weights_from=model_folder)
    _config(board / "target" / "model", "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]})
    submissions = manifest.load_all(board)
    for name in ("adapter", "full"):
        with pytest.raises(UnsafeSubmissionError, match=r"target/model/tokenizer_config\.json: it names code"):
            folder_scan.scan(submissions[name], submissions)
    folder_scan.scan(submissions["retrain"], submissions)


def test_weights_that_are_not_what_the_manifest_says_are_refused(add: Writer, board: Path, model_folder: Path) -> None:
    folder = add("target", role="target", weights_from=model_folder)
    digest = prepare.weights_digest(manifest.load(folder))
    text = (folder / "submission.yaml").read_text(encoding="utf-8")
    (folder / "submission.yaml").write_text(f"{text}weights_sha256: {digest}\n", encoding="utf-8")
    submissions = manifest.load_all(board)
    folder_scan.scan(submissions["target"], submissions)
    _numbers(folder / "model", 0.5)
    with pytest.raises(UnsafeSubmissionError, match=f"`weights_sha256` in submission.yaml says {digest}"):
        folder_scan.scan(submissions["target"], submissions)


def test_the_digest_covers_weights_and_config_and_nothing_else(add: Writer, model_folder: Path) -> None:
    folder = add("target", role="target", weights_from=model_folder)
    submission = manifest.load(folder)
    before = prepare.weights_digest(submission)
    (folder / "model" / "README.md").write_text("about", encoding="utf-8")
    assert prepare.weights_digest(submission) == before
    _config(folder / "model", rms_norm_eps=1e-5)
    assert prepare.weights_digest(submission) != before


def test_a_folder_without_weights_has_no_digest(add: Writer) -> None:
    submission = manifest.load(add("entry"))
    with pytest.raises(UnsafeSubmissionError, match=r"holds no \.safetensors file"):
        prepare.weights_digest(submission)
    with pytest.raises(UnsafeSubmissionError, match="there is no such folder"):
        folder_scan.scan(submission, {})


def test_shards_with_an_index_pass_and_a_tensor_twice_does_not(
    scan: Callable[..., None], model_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(model_folder).save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(folder_scan.scan_folder(tmp_path / "shards", adapter=False)) == 21
    index = tmp_path / "shards" / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    files = sorted(set(told["weight_map"].values()))
    (tmp_path / "shards" / files[0]).write_bytes((tmp_path / "shards" / files[1]).read_bytes())
    with pytest.raises(UnsafeSubmissionError, match="stands in two files, or not where the index says"):
        folder_scan.scan_folder(tmp_path / "shards", adapter=False)


HEADERS: list[tuple[str, Any, bytes]] = [
    ("overlap", {"a": _entry([2], 0, 8), "b": _entry([2], 4, 12)}, b"0" * 12),
    ("4 bytes before tensor 'b' belong to nothing", {"a": _entry([1], 0, 4), "b": _entry([1], 8, 12)}, b"0" * 12),
    ("5 bytes after the last tensor belong to nothing", {"a": _entry([1], 0, 4)}, b"0" * 9),
    ("spans 4 bytes, and its shape needs 8", {"a": _entry([2], 0, 4)}, b"0" * 4),
    ("spans 0 bytes, and its shape needs", {"a": _entry([2**32, 2**32], 0, 0)}, b""),
    ("no usable shape", {"a": _entry([-1], 0, 4)}, b"0" * 4),
    ("no usable shape", {"a": _entry([True], 0, 4)}, b"0" * 4),
    ("no usable shape", {"a": _entry([1] * 9, 0, 4)}, b"0" * 4),
    ("no usable offsets", {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"0" * 4),
    ("no usable offsets", {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4]}}, b"0" * 4),
    ("stored as 'I64', and BF16, F16, F32 are accepted", {"a": _entry([1], 0, 8, "I64")}, b"0" * 8),
    ("not a dtype, a shape and two offsets", {"a": _entry([1], 0, 4) | {"x": 1}}, b"0" * 4),
    ("not a dtype, a shape and two offsets", {"a": 1}, b""),
    ("the key 'a' is given twice", b'{"a": 1, "a": 2}', b""),
    ("its header is no mapping", [], b""),
    ("metadata are not text", {"__metadata__": {"x": 1}}, b""),
    ("holds no tensor", {}, b""),
    ("it is not UTF-8", b"\xff{}", b""),
    ("it is not JSON", b"[" * 50_000, b""),
]


@pytest.mark.parametrize(("sentence", "header", "data"), HEADERS, ids=[str(n) for n in range(len(HEADERS))])
def test_a_header_that_is_not_sound_is_refused(tmp_path: Path, sentence: str, header: Any, data: bytes) -> None:
    with pytest.raises(UnsafeSubmissionError, match=sentence):
        read_header(_write(tmp_path / "a.safetensors", header, data))


def test_a_header_bomb_is_refused_by_its_length_alone(tmp_path: Path) -> None:
    path = tmp_path / "bomb.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**31))
        # A hole in the file: its length is real, and nobody must read it.
        file.truncate(2**31 + 100)
    with pytest.raises(UnsafeSubmissionError, match="at most 33554432 are read"):
        read_header(path)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 400), value=st.integers(0, 255), cut=st.integers(0, 40))
def test_a_damaged_file_is_read_as_the_library_does_or_refused(
    tmp_path: Path, position: int, value: int, cut: int
) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}, path)
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(bytes(content[: len(content) - cut]))
    try:
        ours = read_header(path)
    except UnsafeSubmissionError:
        return
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(ours)
        for name, tensor in ours.items():
            assert tuple(file.get_slice(name).get_shape()) == tensor.shape


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_none_is_found_wherever_it_is(
    tmp_path: Path, dtype: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import save_file

    from harness.submit.scan import safetensors as safetensors_file

    monkeypatch.setattr(safetensors_file, "_CHUNK", 64)
    for position in (0, 31, 32, 499):
        weight = torch.full((500,), 3.0e4, dtype=getattr(torch, dtype))
        weight[position] = value
        path = tmp_path / f"{position}.safetensors"
        save_file({"a": torch.zeros(3), "w": weight}, path)
        with pytest.raises(UnsafeSubmissionError, match="tensor 'w' holds NaN or infinity"):
            check_numbers(path)


def test_the_largest_numbers_of_each_type_are_numbers(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        largest = torch.finfo(dtype).max
        path = tmp_path / f"{dtype}.safetensors"
        save_file({"w": torch.tensor([largest, -largest, 0.0, torch.finfo(dtype).tiny], dtype=dtype)}, path)
        check_numbers(path)


def test_scanning_imports_no_library_that_could_load_weights() -> None:
    import subprocess

    code = (
        "import sys; from harness.submit.checkpoint import prepare; from harness.submit.manifest import load;"
        "from harness.submit.scan import folder;"
        "bad = {'torch', 'transformers', 'safetensors', 'peft', 'huggingface_hub'} & set(sys.modules);"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("rounded", "dtype"), [("BF16", "float32"), ("F16", "float32"), ("F16", "bfloat16")])
def test_the_least_number_that_rounds_to_infinity_is_refused_and_the_one_before_is_not(
    tmp_path: Path, rounded: str, dtype: str
) -> None:
    import torch
    from safetensors.torch import save_file

    narrow = getattr(torch, DTYPE_NAMES[rounded])
    limit = torch.tensor(_TOO_LARGE[rounded, {"float32": "F32", "bfloat16": "BF16"}[dtype]])
    integer = torch.int32 if dtype == "float32" else torch.int16
    edge, below = (value.to(integer).view(getattr(torch, dtype)) for value in (limit, limit - 1))
    assert bool(edge.to(narrow).isinf())
    assert bool(below.to(narrow).isfinite())
    for sign in (1, -1):
        save_file({"w": (sign * below).reshape(1)}, tmp_path / f"{sign}.safetensors")
        check_numbers(tmp_path / f"{sign}.safetensors", rounded=rounded)
        save_file({"w": (sign * edge).reshape(1)}, tmp_path / f"{sign}-large.safetensors")
        check_numbers(tmp_path / f"{sign}-large.safetensors")
        with pytest.raises(
            UnsafeSubmissionError, match=f"'w' holds a number that is infinity in {DTYPE_NAMES[rounded]}"
        ):
            check_numbers(tmp_path / f"{sign}-large.safetensors", rounded=rounded)


def test_a_float32_model_with_a_number_that_bfloat16_has_not_is_refused(scan: Callable[..., None]) -> None:
    from safetensors.torch import load_file, save_file

    def spoil(folder: Path) -> None:
        weights = {name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()}
        weights["model.norm.weight"][0] = 3.4e38
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(UnsafeSubmissionError, match=r"'model.norm.weight' holds a number that is infinity in bfloat16"):
        scan(spoil)


def _tensors(folder: Path, **more: Any) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file(load_file(path) | more, path, metadata={"format": "pt"})


def _masks(folder: Path) -> None:
    import torch

    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    block = "gpt_neox.layers.0.attention"
    masked = torch.tensor(float("-inf"), dtype=torch.float16)
    more = {f"{block}.bias": mask, f"{block}.masked_bias": masked, f"{block}.rotary_emb.inv_freq": torch.ones(4)}
    _tensors(
        folder,
        **more,
        **{"model.layers.1.attention.bias": mask.to(torch.uint8), "model.rotary_emb.inv_freq": torch.ones(4)},
    )


LEFT_OVER: list[tuple[str, Callable[[Path], object]]] = [
    ("consolidated.safetensors: ignored, a second copy",
     lambda m: shutil.copy(m / "model.safetensors", m / "consolidated.safetensors")),
    ("model.safetensors: ignored, since no code reads such buffers: gpt_neox.layers.0.attention.bias", _masks),
    ("trainer_state.json: ignored, since", lambda m: (m / "trainer_state.json").write_text('{"a": NaN}')),
    ("all_results.json: ignored", lambda m: (m / "all_results.json").write_text("[1, 2]")),
    ("config.json: ignored, since no code of llama models", lambda m: _config(m, unsloth_fixed=True)),
]  # fmt: skip


@pytest.mark.parametrize(("note", "add_it"), LEFT_OVER, ids=[note[:30] for note, _ in LEFT_OVER])
def test_what_nothing_reads_is_ignored_and_noted(
    note: str, add_it: Callable[[Path], object], model_folder: Path, tmp_path: Path
) -> None:
    from harness.submit.weight_files import folder_digest

    folder = shutil.copytree(model_folder, tmp_path / "weights")
    plain, digest = folder_scan.scan_folder(folder, adapter=False), folder_digest(folder)
    add_it(folder)
    notes: list[str] = []
    assert set(folder_scan.scan_folder(folder, adapter=False, notes=notes)) == set(plain)
    assert len(notes) == 1
    assert notes[0].startswith(note)
    # They are stored with each row, and a store names no folder of a machine.
    assert str(tmp_path) not in notes[0]
    assert (folder_digest(folder) == digest) == (note[:6] not in ("model.", "config"))


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "deep/optimizer.bin"]
)
def test_what_a_trainer_left_is_refused_as_not_needed(name: str, scan: Callable[..., None]) -> None:
    def leave(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        _zip(folder / name)

    with pytest.raises(UnsafeSubmissionError, match=r"a trainer left it, .* remove it, it is not needed"):
        scan(leave)


def test_a_folder_of_two_things_is_refused_in_one_sentence(
    scan: Callable[..., None], model_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    both = shutil.copytree(model_folder, tmp_path / "both")
    for path in adapter_folder.glob("adapter*"):
        shutil.copy(path, both)
    for adapter in (False, True):
        with pytest.raises(
            UnsafeSubmissionError, match="whole model and an adapter, which transformers attaches"
        ) as refused:
            folder_scan.scan_folder(both, adapter=adapter)
        assert len(refused.value.faults) == 1
    with pytest.raises(UnsafeSubmissionError, match="whole model and an adapter"):
        scan(lambda m: shutil.copy(adapter_folder / "adapter_config.json", m))


FOREIGN: list[tuple[str, bool, Callable[[Path], object]]] = [
    ("format of MLX", False, lambda m: _config(m, quantization={"group_size": 64, "bits": 4})),
    ("format of FP8", False, lambda m: _config(m, quantization_config={"quant_method": "fp8"})),
    ("format of MXFP4", False, lambda m: _config(m, quantization_config={"quant_method": "mxfp4"})),
    ("is Mistral's own format", False, lambda m: (m / "model.safetensors").rename(m / "consolidated.safetensors")),
    (r"is stored as 'F8_E4M3' \(FP8's\)", False,
     lambda m: _write(m / "model.safetensors", {"a": _entry([4], 0, 4, "F8_E4M3")}, b"0" * 4)),
    ("adapter of MLX", True, lambda m: (m / "adapter_config.json").write_text('{"fine_tune_type": "lora"}')),
    ("adapter of the adapters library", True,
     lambda m: (m / "adapter_config.json").write_text('{"config": {"r": 4}, "model_class": "LlamaModel"}')),
    ("adapter of Tunix", True, lambda m: _factors(m, {"layers.0.attn.q_proj.w_lora_a": [4, 4]})),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "adapter", "spoil"), FOREIGN, ids=[each[0][:30] for each in FOREIGN])
def test_a_foreign_format_is_named_in_one_sentence(
    scan: Callable[..., None], sentence: str, adapter: bool, spoil: Callable[[Path], object]
) -> None:
    with pytest.raises(UnsafeSubmissionError, match=sentence) as refused:
        scan(spoil, adapter=adapter)
    assert len(refused.value.faults) == 1
