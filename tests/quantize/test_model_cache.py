"""Quantized models kept on disk: the same model again, never another one, never more than there is room for."""

import os
from dataclasses import replace
from functools import partial

import pytest
import safetensors.torch

from harness import lru_folder
from harness.quantize import model_cache, resolve
from harness.quantize.backends import rtn

HERE = {"device": "cpu", "calibration": ()}


class SlowRounding:
    """Own rounding that says it took long, and counts how often it was asked."""

    def __init__(self, seconds=1e6, version="1"):
        self.calls, self.seconds, self.version = 0, seconds, version

    def library_version(self):
        return self.version

    def quantize(self, checkpoint, spec, *, device, calibration=()):
        self.calls += 1
        made = rtn.BACKEND.quantize(checkpoint, spec, device=device)
        return replace(made, quantize_seconds=self.seconds)


@pytest.fixture
def backend(monkeypatch):
    made = SlowRounding()
    monkeypatch.setattr(model_cache, "backend_of", lambda spec: made)
    return made


@pytest.fixture
def once(checkpoint_of, tmp_path):
    def call(name="rtn-4bit-g64", shape="gqa576", limit=2**30, **changes):
        checkpoint = replace(checkpoint_of(shape), **changes)
        return model_cache.quantize_once(checkpoint, resolve(name), **HERE, cache=tmp_path, limit=limit)

    return call


def entries(tmp_path):
    return sorted((tmp_path / model_cache.FOLDER).glob("*"))


def test_a_kept_model_is_the_one_that_was_made_to_the_bit_with_its_codes_and_proof(backend, once):
    import torch

    made, again = once(), once()
    assert backend.calls == 1
    assert again.proof == made.proof
    assert again.quantize_seconds == made.quantize_seconds
    assert list(again.layers) == list(made.layers)
    for name, layer in made.layers.items():
        assert torch.equal(again.layers[name].codes, layer.codes)
        assert again.layers[name].step == layer.step
    own, found = made.model.state_dict(), again.model.state_dict()
    assert own.keys() == found.keys()
    assert all(torch.equal(own[name], found[name]) for name in own)
    assert not again.model.training


def test_what_a_backend_changes_outside_the_quantized_layers_is_kept_too(backend, once, monkeypatch):
    """AWQ rescales norms."""
    import torch

    own = backend.quantize

    def rescale(*arguments, **keywords):
        made = own(*arguments, **keywords)
        with torch.no_grad():
            made.model.model.layers[0].input_layernorm.weight.mul_(3)
        return made

    monkeypatch.setattr(backend, "quantize", rescale)
    once()
    again = once()
    assert backend.calls == 1
    assert float(again.model.model.layers[0].input_layernorm.weight.mean()) == pytest.approx(3)
    assert float(again.model.model.layers[1].input_layernorm.weight.mean()) == pytest.approx(1)


def test_another_checkpoint_quantizer_or_library_is_another_entry(backend, once, tmp_path):
    once()
    once(name="rtn-3bit-g64")
    once(sha256="f" * 64)
    backend.version = "2"
    once()
    assert backend.calls == 4
    assert len(entries(tmp_path)) == 4


def test_calibration_texts_are_part_of_what_an_entry_is_made_of(backend, checkpoint_of, tmp_path):
    spec = resolve("rtn-4bit-g64")
    for digest in ("a" * 64, "b" * 64, "a" * 64):
        model_cache.quantize_once(checkpoint_of("llama"), replace(spec, calibration=digest), **HERE,
                           cache=tmp_path, limit=2**30)  # fmt: skip
    assert backend.calls == 2


def test_a_calibrated_model_without_codes_is_kept_too(backend, once, monkeypatch, checkpoint_of, tmp_path):
    """AWQ rescales layers, so its codes compare with nobody's and are not handed on."""
    import torch

    own = backend.quantize
    monkeypatch.setattr(backend, "quantize", lambda *args, **kwargs: replace(own(*args, **kwargs), layers={}))
    spec = replace(resolve("awq-4bit-g64"), calibration="a" * 64)
    rounded = resolve("rtn-4bit-g64")
    monkeypatch.setattr(rtn.BACKEND, "quantize", partial(_as_if, rtn.BACKEND.quantize, rounded))
    made, again = (
        model_cache.quantize_once(checkpoint_of("llama"), spec, **HERE, cache=tmp_path, limit=2**30) for _ in range(2)
    )
    assert backend.calls == 1
    assert again.layers == {}
    own_state = made.model.state_dict()
    assert all(torch.equal(own_state[name], value) for name, value in again.model.state_dict().items())


def _as_if(quantize, spec, checkpoint, asked, *, device, calibration=()):
    """Rounds to nearest whatever is asked for."""
    return replace(quantize(checkpoint, spec, device=device), spec=asked)


@pytest.mark.parametrize("damage", ["tensors", "proof", "no proof", "nothing"])
def test_a_damaged_entry_is_made_again(backend, once, tmp_path, damage):
    made = once()
    (place,) = entries(tmp_path)
    if damage == "tensors":
        tensors = place / "tensors.safetensors"
        tensors.write_bytes(tensors.read_bytes()[:-7] + b"\x00" * 7)
        os.utime(tensors, (1, 1))
    elif damage == "proof":
        (place / "about.json").write_text('{"proof": {}}')
    elif damage == "no proof":
        (place / "about.json").write_text("{")
    else:
        (place / "tensors.safetensors").unlink()
    again = once()
    assert backend.calls == 2
    assert again.proof == made.proof
    once()
    assert backend.calls == 2


def test_a_model_that_is_made_faster_than_it_is_read_is_not_kept(backend, once, tmp_path):
    backend.seconds = 1e-6
    once()
    once()
    assert backend.calls == 2
    assert entries(tmp_path) == []


@pytest.mark.parametrize("limit", [0, 1000])
def test_a_model_larger_than_the_limit_is_not_kept(backend, once, tmp_path, limit):
    once(limit=limit)
    assert entries(tmp_path) == []


def test_the_least_recently_used_model_goes_first(backend, once, tmp_path):
    once()
    (first,) = entries(tmp_path)
    once(name="rtn-3bit-g64")
    (second,) = set(entries(tmp_path)) - {first}
    os.utime(first, (100, 100))
    os.utime(second, (200, 200))
    once()  # reading makes the first the most recent again
    size = lru_folder.size_of(first)
    once(name="rtn-2bit-g64", limit=int(2.5 * size))
    assert first in entries(tmp_path)
    assert second not in entries(tmp_path)
    assert len(entries(tmp_path)) == 2


def test_what_a_killed_writer_left_is_dropped_after_a_day_and_not_before(tmp_path):
    fresh, old = tmp_path / ".writing-a", tmp_path / ".writing-b"
    for folder in (fresh, old):
        folder.mkdir()
        (folder / "part").write_bytes(b"12345")
    os.utime(old, (1000, 1000))
    assert lru_folder.trim(tmp_path, 2**30) == 5
    assert fresh.is_dir()
    assert not old.exists()


@pytest.mark.parametrize("error", [OSError, safetensors.SafetensorError])
def test_a_disk_that_can_not_be_written_only_means_that_nothing_is_kept(backend, once, tmp_path, monkeypatch, error):
    def full(*arguments, **keywords):
        raise error("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    assert once().proof is not None
    assert entries(tmp_path) == []


def test_the_16_bit_reference_is_never_kept(tmp_path, checkpoint_of):
    model_cache.quantize_once(checkpoint_of("llama"), resolve("reference"), **HERE, cache=tmp_path,
                       limit=2**30)  # fmt: skip
    assert not (tmp_path / model_cache.FOLDER).exists()


def test_a_cache_that_is_no_folder_costs_time_and_no_job(backend, once, tmp_path):
    (tmp_path / model_cache.FOLDER).write_text("in the way")
    assert once().proof is not None
    assert backend.calls == 1


def test_entries_that_vanish_while_the_cache_is_trimmed_fail_no_job(backend, once, tmp_path, monkeypatch):
    once()
    (place,) = entries(tmp_path)
    look = lru_folder.size_of

    def too_late(path):
        lru_folder.drop(place)
        return look(path)

    monkeypatch.setattr(lru_folder, "size_of", too_late)
    assert once(name="rtn-3bit-g64").proof is not None
    assert place not in entries(tmp_path)


def test_a_model_that_is_dropped_while_it_is_read_is_made_again(backend, once, monkeypatch):
    once()
    monkeypatch.setattr(model_cache.os, "utime", lambda path: lru_folder.drop(path))
    assert once().proof is not None
    assert backend.calls == 2
