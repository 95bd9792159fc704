"""Sound submissions with something changed at random, and files of a size that nobody may hold in memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harness import paths
from harness.submit import validate

SHIPPED = paths.content_dir("submissions")
FILES = ("submission.yaml", "weights/adapter_config.json", "weights/adapter_model.safetensors")
TOKENS = [b"null", b"-1", b"[", b'"', b": ", "\u202e".encode(), b"1e999"]
MEMORY = 512 * 1024 * 1024


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutated") / "submissions"
    for name in ("mini-target-4bit", "mini-retrain", "mini-npo-gdr-lora"):
        shutil.copytree(SHIPPED / name, folder / name)
    return folder


def _mutated(content: bytes, edits: list[tuple[float, bytes, int]]) -> bytes:
    """Returns bytes in which, at fractions of their length, some were replaced, put in or taken out."""
    for place, new, taken in edits:
        # Headers and configs stand at the beginning, and it is there that a change means most.
        at = int(place * place * min(len(content), 20_000))
        content = content[:at] + new + content[at + taken :]
    return content


@example(name="weights/adapter_model.safetensors", edits=[(0.125, "\u2028".encode(), 3)])
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(FILES),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.binary(max_size=6) | st.sampled_from(TOKENS), st.integers(0, 6)),
        min_size=1, max_size=4,
    ),
)  # fmt: skip
def test_a_mutated_submission_is_accepted_or_refused_in_sentences(
    board: Path, name: str, edits: list[tuple[float, bytes, int]]
) -> None:
    folder = board / "mini-npo-gdr-lora"
    sound = (SHIPPED / "mini-npo-gdr-lora" / name).read_bytes()
    (folder / name).write_bytes(_mutated(sound, edits))
    try:
        (faults,) = validate.faults_of([folder])
    finally:
        (folder / name).write_bytes(sound)
    for fault in faults:
        assert fault.isprintable(), fault
        assert fault.endswith((".", "?"))
        assert fault.file is not None


@pytest.mark.slow
def test_two_gigabytes_of_weights_are_read_in_bounded_memory(board: Path) -> None:
    folder = board / "large"
    shutil.copytree(board / "mini-npo-gdr-lora", folder)
    manifest = (folder / "submission.yaml").read_text(encoding="utf-8")
    lines = [line for line in manifest.splitlines() if "weights_sha256" not in line]
    (folder / "submission.yaml").write_text("\n".join(lines).replace("name: mini-npo-gdr-lora", "name: large"), "utf-8")
    size = 2 * 1024**3
    entry = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}
    header = json.dumps({"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": entry}).encode()
    path = folder / "weights" / "adapter_model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    # The numbers are a hole in the file: zeros, and no room on the disk.
    os.truncate(path, 8 + len(header) + size)
    done = subprocess.run(
        [sys.executable, "-B", "-m", "harness.cli.main", "validate", str(folder), "--json"],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )  # fmt: skip
    shutil.rmtree(folder)
    (row,) = json.loads(done.stdout)["rows"]
    assert done.returncode == 2
    assert len(row["faults"]) == 1
    assert "has lora_A, and needs lora_A, lora_B" in row["faults"][0]
