"""The rule by which models are read layer by layer, and the files that they are read from and written to."""

from __future__ import annotations

import json
import logging
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import memory, shards

GIB = 2**30


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10 * GIB)


def test_what_fits_beside_the_reserve_is_taken_whole_and_one_byte_more_is_not(
    free: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(logging.Logger, "handle", lambda logger, record: told.append(record.getMessage()))
    assert not memory.must_stream(10 * GIB - memory.RESERVE, "a model")
    assert told == []
    assert memory.must_stream(10 * GIB - memory.RESERVE + 1, "a model")
    assert told == [
        "a model takes 8.0 GB whole and 10.0 GB are free: its layers are read one after the other, which is slower."
    ]


def test_a_small_model_needs_no_more_room_beside_it_than_it_takes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    assert not memory.must_stream(500, "a model")
    assert memory.must_stream(501, "a model")


def test_both_ways_can_be_forced_and_the_rule_holds_again_afterwards(free: None) -> None:
    with memory.streaming("always"):
        assert memory.must_stream(1, "")
        with memory.streaming("never"):
            assert not memory.must_stream(100 * GIB, "")
        assert memory.must_stream(1, "")
    assert not memory.must_stream(1, "")
    with pytest.raises(RuntimeError), memory.streaming("always"):
        raise RuntimeError
    assert not memory.must_stream(1, "")


def test_free_memory_is_the_least_of_machine_container_and_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    data = psutil.Process().memory_info().data
    monkeypatch.setattr(memory, "container_bytes", lambda folder: 64 * GIB)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    whole = memory.free_bytes()
    assert 0 < whole <= psutil.virtual_memory().total
    monkeypatch.setattr(memory, "container_bytes", lambda folder: 1000)
    assert memory.free_bytes() == 1000
    monkeypatch.setattr(memory, "container_bytes", lambda folder: 64 * GIB)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (data + 2**26, data + 2**26))
    assert 0 < memory.free_bytes() < 2**27
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1, 1))
    assert memory.free_bytes() == 0


def test_a_gpu_is_asked_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: {"cuda:1": (7, 80)}[device])
    assert memory.free_bytes("cuda:1") == 7


def test_a_container_s_cached_files_are_free_and_a_group_without_limit_is_none(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\nfile 250\nkernel 50\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory.container_bytes(tmp_path) == 550
    (tmp_path / "memory.max").write_text("max\n")
    with pytest.raises(ValueError, match="max"):
        memory.container_bytes(tmp_path)
    with pytest.raises(OSError, match=r"memory\.max"):
        memory.container_bytes(tmp_path / "none")


def _tensors() -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(0)
    return {f"layer.{number}": torch.randn(4, 8, generator=drawn) for number in range(5)}


def test_few_tensors_are_one_file_without_an_index(tmp_path: Path) -> None:
    with shards.ShardWriter(tmp_path) as out:
        for name, tensor in _tensors().items():
            out.put(name, tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in _tensors().items())


def test_many_tensors_are_shards_whose_index_tells_where_each_is(tmp_path: Path) -> None:
    with shards.ShardWriter(tmp_path, shard_bytes=200) as out:
        for name, tensor in _tensors().items():
            out.put(name, tensor.T)
    index = json.loads((tmp_path / shards.INDEX).read_text(encoding="utf-8"))
    assert index["metadata"] == {"total_size": 5 * 4 * 8 * 4}
    assert index["weight_map"] == {
        "layer.0": "model-00001-of-00003.safetensors", "layer.1": "model-00001-of-00003.safetensors",
        "layer.2": "model-00002-of-00003.safetensors", "layer.3": "model-00002-of-00003.safetensors",
        "layer.4": "model-00003-of-00003.safetensors",
    }  # fmt: skip
    stored = shards.stored_tensors(tmp_path)
    assert list(stored) == list(_tensors())
    assert all(torch.equal(stored[name].read(), tensor.T) for name, tensor in _tensors().items())
    assert {tensor.shape() for tensor in stored.values()} == {(8, 4)}
    assert shards.count_numbers(tmp_path) == 5 * 32


def test_weights_that_end_in_an_exception_have_no_index(tmp_path: Path) -> None:
    out = shards.ShardWriter(tmp_path, shard_bytes=100)
    out.put("layer", torch.ones(4, 8))
    out.__exit__(KeyError)
    assert not any(path.name.startswith("model") for path in tmp_path.iterdir())


def test_a_scalar_counts_as_one_number(tmp_path: Path) -> None:
    save_file({"scalar": torch.tensor(1.0), "row": torch.ones(3)}, tmp_path / "model.safetensors")
    assert shards.count_numbers(tmp_path) == 4
