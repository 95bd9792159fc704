"""A collection of hostile submissions: one `quench validate`, held to little memory and no writing, refuses them all.

Each is a sound copy of a shipped submission with one thing wrong, and has a sentence of its own.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import paths
from harness.submit import validate

Spoil = Callable[[Path], object]
SHIPPED = paths.content_dir("submissions")
MEMORY = 512 * 1024 * 1024
CPU_SECONDS_EACH = 5


def _bytes(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / "weights" / name).write_bytes(content)


def _config(name: str = "adapter_config.json", /, **changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "weights" / name
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    return spoil


def _fields(**changes: Any) -> Spoil:
    """Changes the manifest; None takes a field away."""

    def spoil(folder: Path) -> None:
        path = folder / "submission.yaml"
        fields = yaml.safe_load(path.read_text(encoding="utf-8")) | changes
        path.write_text(yaml.safe_dump({key: value for key, value in fields.items() if value is not None}), "utf-8")

    return spoil


def _yaml(text: str) -> Spoil:
    """Appends text to the manifest."""
    return lambda folder: (folder / "submission.yaml").open("a", encoding="utf-8").write(text)


def _link(name: str, to: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "weights" / name).unlink(missing_ok=True)
        (folder / "weights" / name).symlink_to(to)

    return spoil


def _fifo(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def _header(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Rewrites the adapter's header and keeps its data."""

    def spoil(folder: Path) -> None:
        path = folder / "weights" / "adapter_model.safetensors"
        content = path.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        change(header)
        told = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(told)) + told + content[8 + length :])

    return spoil


def _tensor(**changes: Any) -> Spoil:
    """Changes what the header says of the first tensor."""
    return _header(lambda header: header[next(name for name in header if name != "__metadata__")].update(changes))


def _other_layers(header: dict[str, Any]) -> None:
    for name in list(header):
        header[name.replace("layers.0", "layers.77")] = header.pop(name)


def _last_number(content: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "weights" / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[: -len(content)] + content)

    return spoil


def _swollen(name: str, size: int) -> Spoil:
    """A file with a hole: its length is real, and nobody must read it."""

    def spoil(folder: Path) -> None:
        (folder / name).touch()
        os.truncate(folder / name, size)

    return spoil


def _archive(kind: str) -> bytes:
    kept = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=kept, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("../../escaped"))
    else:
        with zipfile.ZipFile(kept, "w") as zipped:
            zipped.writestr("archive/data.pkl", pickle.dumps({}))
    return kept.getvalue()


def _many(folder: Path) -> None:
    for number in range(2001):
        (folder / "weights" / f"{number}.txt").touch()


def _cut(folder: Path) -> None:
    path = folder / "weights" / "adapter_model.safetensors"
    os.truncate(path, path.stat().st_size - 100)


def _twice(folder: Path) -> None:
    path = folder / "weights" / "adapter_config.json"
    path.write_text(path.read_text(encoding="utf-8").replace("{", '{"r": 8,', 1), encoding="utf-8")


def _raw_header(text: bytes, length: int | None = None) -> Spoil:
    return _bytes("adapter_model.safetensors", struct.pack("<Q", len(text) if length is None else length) + text)


_FULL = "mini-ga-gdr-full-lr1e-4"
_ADAPTER = "mini-npo-gdr-lora"

# Name -> what of its sentence only it has, and what is done to a copy of the sound adapter.
ADAPTERS: dict[str, tuple[str, Spoil]] = {
    "pickle-as-weights": ("model.safetensors: it is a pickle", _bytes("adapter_model.safetensors", b"\x80\x04N.")),
    "pickle-as-text": ("vocab.txt: it is a pickle", _bytes("vocab.txt", b"cos\nsystem\n(S'true'\ntR.")),
    "pickle-by-name": (".pkl files are not accepted", _bytes("a.pkl", b"text")),
    "torch-zip": ("it is a zip archive (as torch.save writes)", _bytes("notes.md", _archive("zip"))),
    "tar": ("it is a tar archive", _bytes("notes.txt", _archive("tar"))),
    "gzip": ("it is gzip data", _bytes("tokenizer.json", gzip.compress(b"{}"))),
    "program": ("it is a program", _bytes("README", b"\x7fELF\x02\x01")),
    "script": ("it is a script", _bytes("setup.txt", b"#!/bin/sh\nexit\n")),
    "numpy": ("it is a NumPy file", _bytes("mean.txt", b"\x93NUMPY\x01\x00")),
    "hdf5": ("it is an HDF5 file", _bytes("w.txt", b"\x89HDF\r\n\x1a\n")),
    "python": (".py files are not accepted", _bytes("modeling.py", b"import os")),
    "binary": ("it is binary and of no accepted kind", _bytes("data.dat", b"a\0b")),
    "huge-text": ("it has 99999999999 bytes, and at most", _swollen("weights/merges.txt", 99_999_999_999)),
    "huge-yaml": ("it has 104857600 bytes, and at most 65536", _swollen("submission.yaml", 104_857_600)),
    "many-files": ("it holds more than 2000 files", _many),
    "case-collision": ("differ in case alone", _bytes("Adapter_Config.json", b"{}")),
    "hidden-file-name": ("holds characters that can't be shown", _bytes("a\u202egnp.txt", b"x")),
    "link-to-a-file": ("passwd.txt: it is a link out of the submission's folder", _link("passwd.txt", "/etc/passwd")),
    "link-to-a-device": ("model.safetensors: it is a link out", _link("adapter_model.safetensors", "/dev/zero")),
    "link-upward": ("up: it is a link out", _link("up", "../..")),
    "link-to-itself": ("its files can't be read", _link("loop", "loop")),
    "pipe-as-weights": ("adapter_model.safetensors: it is neither", _fifo("weights/adapter_model.safetensors")),
    "pipe-as-config": ("adapter_config.json: it is neither", _fifo("weights/adapter_config.json")),
    "pipe-as-manifest": ("submission.yaml: there is no such file", _fifo("submission.yaml")),
    "header-bomb": ("a header of 9223372036854775807 bytes", _raw_header(b"{}", 2**63 - 1)),
    "header-swollen": ("its header has 33554433 bytes", _raw_header(b" " * (32 * 1024 * 1024 + 1))),
    "header-nested": ("its header can't be read: it is not JSON", _raw_header(b"[" * 1_000_000)),
    "header-twice": ("its header can't be read: the key 'a' is given twice", _raw_header(b'{"a": 1, "a": 2}')),
    "header-empty": ("it holds no tensor", _raw_header(b"{}")),
    "header-list": ("its header is no mapping", _raw_header(b"[]")),
    "header-no-text": ("its header can't be read: it is not UTF-8", _raw_header(b"\xff\xfe")),
    "shape-10-to-12": ("and its shape needs", _tensor(shape=[10**6, 10**6])),
    "shape-negative": ("has no usable shape", _tensor(shape=[-1, 8])),
    "offsets-outside": ("has no usable offsets", _tensor(data_offsets=[0, 10**30])),
    "overlap": ("overlap another tensor's", _header(lambda header: header.update(ghost=list(header.values())[-1]))),
    "dtype-object": ("is stored as 'OBJECT'", _tensor(dtype="OBJECT")),
    "metadata-no-text": ("its metadata are not text", _header(lambda header: header.update(__metadata__={"a": 1}))),
    "cut-off": ("it is cut off: its header describes", _cut),
    "nan": ("holds NaN or infinity", _last_number(b"\x00\x00\xc0\x7f")),
    "rank-10-to-6": ("`r` is 1000000, and accepted is 1 to 8192", _config(r=10**6)),
    "rank-unlike-factors": ("not of the rank that `r` says", _config(r=9)),
    "alpha": ("`lora_alpha` is", _config(lora_alpha=1e40)),
    "regex-modules": ("surplus are model.layers.0", _config(target_modules="(a+)+$")),
    "regex-ranks": ("`rank_pattern` is", _config(rank_pattern={"(a+": 8})),
    "regex-two-readings": ("`exclude_modules` is", _config(exclude_modules="(?:q_proj){e<=1}")),
    "auto-map": ("it names code to run (auto_map)", _config(auto_map={"AutoModel": "x.Y"})),
    "megatron": ("`megatron_config` is", _config(megatron_config={"a": 1})),
    "hydra-target": ("`_target_` is no field of peft", _config(_target_="os.system")),
    "saved-modules": ("`modules_to_save` is", _config(modules_to_save=["lm_head"])),
    "pissa": ("`init_lora_weights` is", _config(init_lora_weights="pissa")),
    "config-twice": ("the key 'r' is given twice", _twice),
    "config-nan": ("it holds NaN, which is no JSON number", _config(lora_dropout=float("nan"))),
    "config-list": ("it must be a JSON mapping", _bytes("adapter_config.json", b"[]")),
    "wrong-base": ("the base model has no such layer", _header(_other_layers)),
    "base-nowhere": ("`base_model` names 'nowhere'", _fields(base_model="nowhere")),
    "base-a-path": ("`base_model` can't be used ('../../etc')", _fields(base_model="../../etc")),
    "digest": ("they differ: submit the files that were meant", _fields(weights_sha256="0" * 64)),
    "weights-upward": ("`weights` must stay inside the submission's folder ('../", _fields(weights="../mini-retrain")),
    "weights-absolute": ("`weights` must stay inside the submission's folder ('/etc')", _fields(weights="/etc")),
    "weights-too-long": ("`weights` is no name that a file system takes", _fields(weights="x" * 299)),
    "hub-branch": ("`revision` can't be used ('main')", _fields(weights="hf://a/b", revision="main")),
    "title-rtl": ("`title` holds the character U+202E", _fields(title="a\u202eb")),
    "notes-ansi": ("`notes` holds the character U+001B", _fields(notes="a\x1b[2Jb")),
    "author-isolate": ("`authors` holds the character U+2066", _fields(authors=["a\u2066b"])),
    "script-address": ("`paper_url` can't be used ('javascript:", _fields(paper_url="javascript:alert(1)")),
    "markup-address": ("`paper_url` can't be used ('https://x.org/\"><script", _fields(paper_url='https://x.org/"><script>')),
    "infinity": ("`hyperparameters` holds what JSON can't", _fields(hyperparameters={"a": float("inf")})),
    "alias-bomb": ("it uses a YAML anchor or alias", _yaml("a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n")),
    "yaml-tag": ("it is not plain YAML (could not determine", _yaml("x: !!python/object/apply:os.abort []\n")),
    "yaml-deep": ("it is nested more than 40 deep", _yaml(f"x: {'[' * 500}{']' * 500}\n")),
    "yaml-twice": ("the key 'kind' is given twice", _yaml("kind: full_model\n")),
    "unknown-field": ("`trust_remote_code` is no field", _yaml("trust_remote_code: true\n")),
}  # fmt: skip

# The same for a copy of a whole model.
MODELS: dict[str, tuple[str, Spoil]] = {
    "model-vocabulary": ("embeddings of shape (1000000000,", _config("config.json", vocab_size=10**9)),
    "model-layers": ("num_hidden_layers is 100000", _config("config.json", num_hidden_layers=100_000)),
    "model-number": ("`rope_theta` holds a number above", _config("config.json", rope_theta=1e300)),
    "model-type": ("model_type 'evil' can't be scored", _config("config.json", model_type="evil")),
    "model-kernels": ("`attn_implementation` is 'a/b', which", _config("config.json", attn_implementation="a/b")),
    "model-quantized": ("it describes quantized weights", _config("config.json", quantization_config={"bits": 4})),
    "model-index": ("it points at '../x.safetensors'", _bytes(
        "model.safetensors.index.json", b'{"weight_map": {"a": "../x.safetensors"}}')),
    "model-second": ("other.safetensors belongs to nothing", _bytes("other.safetensors", b"x")),
}  # fmt: skip

CASES = ADAPTERS | MODELS


def _state(board: Path) -> list[tuple[str, int, int]]:
    return sorted((str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in board.rglob("*"))


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The rows of one `quench validate` over the collection, with two sound submissions among it.

    The process may take 512 MB, write to no file and use five CPU-seconds for each case.
    """
    board = tmp_path_factory.mktemp("hostile") / "submissions"
    for name in ("mini-target-4bit", "mini-retrain", _ADAPTER, _FULL):
        shutil.copytree(SHIPPED / name, board / name)
    for name, (_, spoil) in CASES.items():
        folder = shutil.copytree(board / (_FULL if name in MODELS else _ADAPTER), board / name)
        changed = {"name": name} if name == "digest" else {"name": name, "weights_sha256": None}
        _fields(**changed)(folder)
        spoil(folder)
    before = _state(board)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS_EACH * len(CASES),) * 2)

    done = subprocess.run(
        [sys.executable, "-B", "-c", _VALIDATE, *(str(board / name) for name in (*CASES, _ADAPTER, _FULL))],
        capture_output=True, text=True, preexec_fn=limit, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr[-2000:]
    assert "loaded: []" in done.stderr
    assert _state(board) == before
    return {row["submission"]: row for row in json.loads(done.stdout)["rows"]}


_VALIDATE = """
import atexit, sys
heavy = ("torch", "transformers", "peft", "safetensors", "gguf")
# As on the board's CI, which installs none of them.
sys.modules.update(dict.fromkeys(heavy))
from harness.cli.main import app
atexit.register(lambda: print("loaded:", [name for name in heavy if sys.modules.get(name)], file=sys.stderr))
app(["validate", *sys.argv[1:], "--json"])
"""


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_submission_is_refused_with_its_own_sentence(refused: dict[str, dict[str, Any]], name: str) -> None:
    row = refused[name]
    assert not row["valid"]
    assert any(CASES[name][0] in fault for fault in row["faults"]), row["faults"]
    assert all(fault.isprintable() and len(fault) < 1000 for fault in row["faults"])
    assert all(told["file"] for told in row["details"])


def test_every_sentence_belongs_to_one_case_of_at_least_sixty(refused: dict[str, dict[str, Any]]) -> None:
    assert len(CASES) >= 60
    for name, (sentence, _) in CASES.items():
        sharing = [other for other in CASES if any(sentence in fault for fault in refused[other]["faults"])]
        assert sharing == [name], f"{sentence!r} is said of {sharing}"


def test_what_the_collection_was_made_from_is_accepted(refused: dict[str, dict[str, Any]]) -> None:
    for name in (_ADAPTER, _FULL):
        assert refused[name]["faults"] == []
        assert any("unchecked" in note for note in refused[name]["notes"])
    for faults, notes in validate.reports_of([SHIPPED / _ADAPTER, SHIPPED / _FULL]):
        assert faults == []
        assert not any("unchecked" in note for note in notes)
