"""Hostile folders beyond single bytes: files of other kinds, names, indexes, sizes and mutated headers."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import UnsafeSubmissionError
from harness.submit.scan import adapter_fields, model_config
from harness.submit.scan import folder as folder_scan
from harness.submit.scan.safetensors import read_header

Spoil = Callable[[Path], object]

# A FIFO that is opened, or /dev/zero that is read, would never come back.
pytestmark = pytest.mark.timeout(120)

_MUTATIONS = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip


@pytest.fixture
def loading_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors
    import torch
    import transformers

    def loaded(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a weight was loaded")

    monkeypatch.setattr(torch, "load", loaded)
    monkeypatch.setattr(safetensors, "safe_open", loaded)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", loaded)


@pytest.fixture
def spoiled(model_folder: Path, adapter_folder: Path, tmp_path: Path, loading_is_forbidden: None) -> Callable[..., Any]:
    """Copies a sound folder, has it spoiled, and scans it."""

    def run(spoil: Spoil, *, adapter: bool = False) -> dict[str, Any]:
        folder = tmp_path / "weights"
        shutil.copytree(adapter_folder if adapter else model_folder, folder)
        spoil(folder)
        base = folder_scan.read_tensors(model_folder, "model") if adapter else None
        return folder_scan.scan_folder(folder, adapter=adapter, base=base)

    return run


def _gone(path: Path) -> Path:
    path.unlink()
    return path


def _socket(path: Path) -> None:
    # Names of sockets are short, so it is bound from inside the folder.
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(before)


def _map(folder: Path, **changes: Any) -> None:
    """Writes an index that is right but for ``changes``; None in the map removes a tensor."""
    right = dict.fromkeys(read_header(folder / "model.safetensors"), "model.safetensors")
    weight_map = {key: value for key, value in (right | changes.pop("weights", {})).items() if value is not None}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map} | changes
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _swell(path: Path) -> None:
    path.write_text(" " * 5000, encoding="utf-8")
    # The rest is a hole: its length is real, and nobody must read it.
    os.truncate(path, 64 * 1024 * 1024 + 1)


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("a"))


def _set(folder: Path, name: str = "config.json", **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def _without(folder: Path, name: str, key: str) -> None:
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8"))
    del content[key]
    path.write_text(json.dumps(content), encoding="utf-8")


KINDS: list[tuple[str, Spoil]] = [
    (r"model\.safetensors: it is neither a file nor a folder", lambda m: os.mkfifo(_gone(m / "model.safetensors"))),
    (r"config\.json: it is neither a file nor a folder", lambda m: os.mkfifo(_gone(m / "config.json"))),
    (r"deep/pipe: it is neither a file nor", lambda m: (m / "deep").mkdir() or os.mkfifo(m / "deep" / "pipe")),
    (r"listening: it is neither a file nor a folder", lambda m: _socket(m / "listening")),
    (r"out of the submission's folder", lambda m: _gone(m / "model.safetensors").symlink_to("/dev/zero")),
    (r"out of the submission's folder", lambda m: _gone(m / "config.json").symlink_to("../../config.json")),
    (r"out of the submission's folder", lambda m: (m / "deep").mkdir() or (m / "deep" / "up").symlink_to("../..")),
    (r"config\.json: there is no such file", lambda m: _gone(m / "config.json").mkdir()),
    (r"x\.safetensors belongs to nothing", lambda m: (m / "x.safetensors").mkdir()),
    (r"Model\.safetensors belongs to nothing", lambda m: (m / "model.safetensors").rename(m / "Model.safetensors")),
    (r"binary and of no accepted", lambda m: (m / "model.safetensors").rename(m / "model.SafeTensors")),
    (
        r"Config\.json: it names code to run",
        lambda m: _gone(m / "config.json").with_name("Config.json").write_text('{"auto_map": 1}'),
    ),
    (
        r"config\.JSON: it names code to run",
        lambda m: _gone(m / "config.json").with_name("config.JSON").write_text('{"auto_map": 1}'),
    ),
    (
        r"'Config\.json' and 'config\.json' differ in case alone",
        lambda m: shutil.copy(m / "config.json", m / "Config.json"),
    ),
    (r"the name 'a\\x1b\[31m\.txt' holds characters", lambda m: (m / "a\x1b[31m.txt").touch()),
    (r"the name 'a\\u202etxt\.exe' holds characters", lambda m: (m / "a\u202etxt.exe").touch()),
    (r"notes\.txt: it is a pickle", lambda m: (m / "notes.txt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")),
    (r"vocab\.json: it is a pickle", lambda m: (m / "vocab.json").write_bytes(pickle.dumps({"a": 1}, protocol=0))),
    (r"README: it is a pickle", lambda m: (m / "README").write_bytes(pickle.dumps(["a" * 300], protocol=1))),
    (
        r"deep/NOTICE: it is a pickle",
        lambda m: (m / "deep").mkdir() or (m / "deep" / "NOTICE").write_bytes(b"(ios\nsystem\n."),
    ),
    (r"merges\.txt: it is a pickle", lambda m: (m / "merges.txt").write_bytes(b"N0" * 50_000)),
    (r"merges\.txt: it has 67108865 bytes, and at most", lambda m: _swell(m / "merges.txt")),
    (r"weights\.txt: it is a tar archive", lambda m: _tar(m / "weights.txt")),
    (r"run: it is a script", lambda m: (m / "run").write_text("#!/bin/sh\n")),
    (r"\.PY files are not accepted", lambda m: (m / "MODELING.PY").write_text("x")),
    (r"\.Pickle files are not accepted", lambda m: (m / "a.Pickle").write_bytes(b"cos\nsystem\n.")),
    (r"\.gz files are not accepted", lambda m: (m / "model.safetensors.gz").write_bytes(b"text")),
    (r"it is gzip data", lambda m: (m / "vocab.json").write_bytes(b"\x1f\x8b\x08")),
    (r"it is xz data", lambda m: (m / "NOTICE").write_bytes(b"\xfd7zXZ\0")),
    (r"it is zstd data", lambda m: (m / "a.txt").write_bytes(b"\x28\xb5\x2f\xfd")),
    (r"it is a program", lambda m: (m / "LICENSE").write_bytes(b"MZ\x90")),
    (r"it is a GGUF file", lambda m: (m / "spiece.model").write_bytes(b"GGUF")),
    (r"it holds more than 2000 files", lambda m: [(m / f"{n}.txt").touch() for n in range(2001)]),
    (r"cut off or no safetensors file", lambda m: (m / "model.safetensors").write_bytes(b"")),
    (r"its header can't be read: it is not JSON", lambda m: (m / "model.safetensors").write_bytes(b"\0" * 8)),
    (r"cut off or no safetensors file", lambda m: (m / "model.safetensors").write_bytes(b"version https://git-lfs")),
]


@pytest.mark.parametrize(("sentence", "spoil"), KINDS, ids=[f"{n}-{s[:35]}" for n, (s, _) in enumerate(KINDS)])
def test_a_file_of_the_wrong_kind_or_name_is_refused(spoiled: Callable[..., Any], sentence: str, spoil: Spoil) -> None:
    with pytest.raises(UnsafeSubmissionError, match=sentence):
        spoiled(spoil)


@pytest.mark.parametrize(
    "text",
    [
        "No.",
        "I.",
        "cool model\nby a lab\nNice.",
        "A list: a, b.",
        "]",
        "",
        "N",
        "Very well.\nThat is all.",
        "version 1\n",
    ],
)
def test_prose_that_starts_like_a_pickle_is_text(spoiled: Callable[..., Any], text: str) -> None:
    assert len(spoiled(lambda folder: (folder / "README.md").write_text(text))) == 21


def test_links_that_stay_inside_and_tokenizer_models_are_accepted(spoiled: Callable[..., Any]) -> None:
    def arrange(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "round").symlink_to("..")
        (folder / "about.json").symlink_to("config.json")
        (folder / "tokenizer.model").write_bytes(b"\x0a\0\0\x05binary by nature")

    assert len(spoiled(arrange)) == 21


INDEXES: list[tuple[str, Spoil]] = [
    (r"no file holds tensor 'ghost'", lambda m: _map(m, weights={"ghost": "model.safetensors"})),
    (r"tensor 'lm_head\.weight' stands in two files, or not", lambda m: _map(m, weights={"lm_head.weight": None})),
    (r"points at 'MODEL\.safetensors', which is not there", lambda m: _map(m, weights={"a": "MODEL.safetensors"})),
    (r"points at '\.safetensors/'", lambda m: _map(m, weights={"a": ".safetensors/"})),
    (r"points at '7', which is no", lambda m: _map(m, weights={"a": 7})),
    (r"points at 'x\\x00\.safetensors'", lambda m: _map(m, weights={"a": "x\0.safetensors"})),
    (r"points at 'deep/x\.safetensors'", lambda m: _map(m, weights={"a": "deep/x.safetensors"})),
    (r"must hold a weight_map", lambda m: _map(m, weight_map=["model.safetensors"])),
    (r"must hold a weight_map", lambda m: _map(m, auto_map={})),
    (r"model\.safetensors belongs to nothing", lambda m: _map(m, weight_map={})),
    (r"index\.json: it is not JSON", lambda m: (m / "model.safetensors.index.json").write_text("{")),
    (r"index\.json: the key 'a' is given", lambda m: (m / "model.safetensors.index.json").write_text('{"a":1,"a":1}')),
]


@pytest.mark.parametrize(("sentence", "spoil"), INDEXES, ids=[f"{n}-{s[:35]}" for n, (s, _) in enumerate(INDEXES)])
def test_an_index_that_does_not_tell_the_truth_is_refused(
    spoiled: Callable[..., Any], sentence: str, spoil: Spoil
) -> None:
    with pytest.raises(UnsafeSubmissionError, match=sentence):
        spoiled(spoil)


def test_an_index_over_a_single_file_is_accepted(spoiled: Callable[..., Any]) -> None:
    assert len(spoiled(_map)) == 21


CONFIGS: list[tuple[str, Spoil]] = [
    (r"above 1000", lambda m: _set(m, temperature=-1e31)),
    (r"above 1000", lambda m: _set(m, vocab_size=10**4000)),
    (r"above 1000", lambda m: _set(m, rope_parameters={"a": [{"b": [10**31]}]})),
    (r"above 1000", lambda m: (m / "config.json").write_text('{"model_type": "llama", "top_p": 1e999}')),
    (r"model_type \['llama'\] can't be scored", lambda m: _set(m, model_type=["llama"])),
    (r"model_type None can't be scored: use one of apertus", lambda m: _without(m, "config.json", "model_type")),
    (
        r"`num_attention_heads` is True, and accepted is a whole number above 0",
        lambda m: _set(m, num_attention_heads=True),
    ),
    (r"`num_hidden_layers` is -1, and accepted is a whole number above 0", lambda m: _set(m, num_hidden_layers=-1)),
    (
        r"`hidden_size` is missing: accepted is a whole number above 0",
        lambda m: _without(m, "config.json", "hidden_size"),
    ),
    (r"`intermediate_size` is 96\.0, and accepted is a whole number", lambda m: _set(m, intermediate_size=96.0)),
    (
        r"`num_key_value_heads` is 0, and accepted is a whole number from 1 to 16777216",
        lambda m: _set(m, num_key_value_heads=0),
    ),
    (r"`max_position_embeddings` is 16777217, and accepted", lambda m: _set(m, max_position_embeddings=2**24 + 1)),
    (r"num_hidden_layers is 1, and the weights have 2", lambda m: _set(m, num_hidden_layers=1)),
    (r"wider than any tensor", lambda m: _set(m, num_key_value_heads=2**20)),
    (r"`_a0` is 0, which transformers reads of any config", lambda m: _set(m, **{f"_a{n}": n for n in range(7)})),
    (r"at most 67108864 are read", lambda m: _swell(m / "tokenizer_config.json")),
]


@pytest.mark.parametrize(("sentence", "spoil"), CONFIGS, ids=[f"{n}-{s[:35]}" for n, (s, _) in enumerate(CONFIGS)])
def test_a_config_that_asks_for_another_model_is_refused(
    spoiled: Callable[..., Any], sentence: str, spoil: Spoil
) -> None:
    with pytest.raises(UnsafeSubmissionError, match=sentence):
        spoiled(spoil)


ADAPTERS: list[tuple[str, dict[str, Any]]] = [
    (r"`r` is 1000000, and accepted is 1 to 8192", {"r": 10**6}),
    (r"`r` is 8193", {"r": adapter_fields.MAX_RANK + 1}),
    (r"`r` is 0", {"r": 0}),
    (r"`r` is 4\.5", {"r": 4.5}),
    (r"`r` is True", {"r": True}),
    (r"`rank_pattern` is", {"rank_pattern": {"q_proj": 8193}}),
    (r"`alpha_pattern` is", {"alpha_pattern": {"q_proj": 1e31}}),
    (r"`alpha_pattern` is", {"alpha_pattern": {"x" * 501: 1}}),
    (r"`alpha_pattern` is", {"alpha_pattern": {"q_proj": None}}),
    (r"`lora_alpha` is True", {"lora_alpha": True}),
    (r"`lora_dropout` is 2", {"lora_dropout": 2}),
    (r"`target_modules` is None", {"target_modules": None}),
    (r"`target_modules` is .*a list of module names, all-linear, or a", {"target_modules": ["q_proj", 7]}),
    (r"`layers_to_transform` is 'all'", {"layers_to_transform": "all"}),
    (r"`exclude_modules` is .*a regular expression of at most 2000", {"exclude_modules": "x" * 2001}),
    (r"`use_dora` is 1", {"use_dora": 1}),
    (r"`use_rslora` is 'yes'", {"use_rslora": "yes"}),
    (r"`lora_bias` is True, and accepted is nothing: a bias beside", {"lora_bias": True}),
    (r"`base_model_name_or_path` is 'x{59}, and", {"base_model_name_or_path": "x" * 501}),
    (r"`init_lora_weights` is 'loftq'", {"init_lora_weights": "loftq"}),
    (r"`peft_type` is \[\]", {"peft_type": []}),
]


@pytest.mark.parametrize(("sentence", "changes"), ADAPTERS, ids=[f"{n}" for n in range(len(ADAPTERS))])
def test_an_adapter_setting_out_of_bounds_is_told_with_what_is_accepted(
    spoiled: Callable[..., Any], sentence: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(UnsafeSubmissionError, match=sentence):
        spoiled(lambda folder: _set(folder, "adapter_config.json", **changes), adapter=True)


@pytest.mark.parametrize("key", ["peft_type", "r", "target_modules"])
def test_an_adapter_without_its_essential_settings_is_refused(spoiled: Callable[..., Any], key: str) -> None:
    with pytest.raises(UnsafeSubmissionError, match=f"`{key}` is missing: accepted is"):
        spoiled(lambda folder: _without(folder, "adapter_config.json", key), adapter=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_alpha": 1e9},
        {"lora_alpha": -8},
        {"lora_alpha": 0},
        {"lora_dropout": 1},
        {"modules_to_save": []},
        {"r": 4.0},
    ],
)
def test_an_adapter_setting_at_its_bound_is_accepted(spoiled: Callable[..., Any], changes: dict[str, Any]) -> None:
    found = spoiled(lambda folder: _set(folder, "adapter_config.json", **changes), adapter=True)
    assert len(found) == 28


@_MUTATIONS
@given(
    key=st.sampled_from(sorted(["dtype", "shape", "data_offsets", "extra", "a", "b", "__metadata__"])),
    value=st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4)
    | st.lists(st.integers(-2, 2**64) | st.booleans() | st.floats(), max_size=9),
    remove=st.booleans(),
)  # fmt: skip
def test_a_mutated_header_describes_the_file_exactly_or_is_refused(
    tmp_path: Path, key: str, value: Any, remove: bool
) -> None:
    header: dict[str, Any] = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }
    place = header if key in ("a", "b", "__metadata__") else header["b"]
    # Unhashable dtypes are no part of this test.
    place[key] = str(value) if key == "dtype" else value
    if remove:
        del place[key]
    told = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(told)) + told + b"\0" * 32)
    try:
        tensors = read_header(path)
    except UnsafeSubmissionError:
        return
    assert sum(tensor.end - tensor.start for tensor in tensors.values()) == 32
    assert max(tensor.end for tensor in tensors.values()) == path.stat().st_size


@_MUTATIONS
@given(
    key=st.sampled_from(["hidden_size", "vocab_size", "num_hidden_layers", "head_dim", "rope_parameters", "dtype",
                         "model_type", "architectures", "eos_token_id", "quantization_config", "anything"]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
        max_leaves=5,
    ),
)  # fmt: skip
def test_a_mutated_config_is_accepted_or_refused_and_sizes_never_change(
    model_folder: Path, tmp_path: Path, key: str, value: Any
) -> None:
    tensors = folder_scan.read_tensors(model_folder, "model")
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config | {key: value}), encoding="utf-8")
    try:
        model_config.check_model(path, tensors)
    except UnsafeSubmissionError:
        return
    assert key != "quantization_config" or value is None
    if key in ("hidden_size", "vocab_size", "num_hidden_layers", "model_type"):
        assert value == config[key]


def test_a_claim_of_a_trillion_layers_is_refused_without_counting_them(model_folder: Path, tmp_path: Path) -> None:
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config | {"num_hidden_layers": 10**12}), encoding="utf-8")
    with pytest.raises(UnsafeSubmissionError, match="num_hidden_layers is 1000000000000"):
        model_config.check_model(path, folder_scan.read_tensors(model_folder, "model"))
