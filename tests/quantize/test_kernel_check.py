"""The library's own kernels are held against the dense model that is scored, and what is beyond rounding shows."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from harness.errors import QuantizationError
from harness.quantize import backend_of, kernel_check, resolve

TEXTS = ("w1 w2 w3 w4 w5", "w9 w8 w7", "w20 w30 w40 w50 w60 w70")
NATIVE = ["bnb-int8", "bnb-nf4", "bnb-fp4", "hqq-4bit-g64", "hqq-3bit-g64", "quanto-int8-row", "torchao-int8-row",
          "torchao-int4-g64"]  # fmt: skip


@pytest.fixture
def tokenizer(checkpoint_of):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint_of("llama").tokenizer_path)


@pytest.fixture
def quantized(checkpoint_of):
    def call(name):
        spec = resolve(name)
        reason = backend_of(spec).unavailable_reason(spec, "cpu")
        if reason:
            pytest.skip(reason)
        return backend_of(spec).quantize(checkpoint_of("llama"), spec, device="cpu")

    return call


def probe(made, checkpoint, tokenizer):
    return kernel_check.probe(made, checkpoint, tokenizer, TEXTS, device="cpu").proof


@pytest.mark.parametrize("name", NATIVE)
def test_a_kernel_s_logits_are_those_of_the_dense_model_but_for_rounding(quantized, checkpoint_of, tokenizer, name):
    proof = probe(quantized(name), checkpoint_of("llama"), tokenizer)
    assert 0 < proof.native_rounding_difference < 0.01
    assert 0 < proof.native_mean_difference <= proof.native_max_difference
    # LLM.int8 rounds activations to 8 bit as well.
    limit = 20 if name == "bnb-int8" else 3
    assert proof.native_mean_difference < limit * proof.native_rounding_difference


def test_a_kernel_that_computes_something_else_is_beyond_rounding(quantized, checkpoint_of, tokenizer, monkeypatch):
    from harness.publish.thresholds import NATIVE_LIMIT

    made = quantized("bnb-nf4")
    backend = backend_of(made.spec)
    load = backend.native

    def broken(checkpoint, spec, *, device):
        model = load(checkpoint, spec, device=device)
        model.model.layers[1].mlp.down_proj.forward = lambda hidden: hidden[..., :128]
        return model

    monkeypatch.setattr(type(backend), "native", lambda self, *args, **kwargs: broken(*args, **kwargs))
    proof = probe(made, checkpoint_of("llama"), tokenizer)
    assert proof.native_mean_difference > NATIVE_LIMIT * proof.native_rounding_difference


def test_backends_without_a_kernel_come_back_as_they_are(quantized, checkpoint_of, tokenizer):
    for name in ("rtn-4bit-g64", "reference"):
        made = quantized(name)
        assert kernel_check.probe(made, checkpoint_of("llama"), tokenizer, TEXTS, device="cpu") is made


class Broken:
    """A backend whose kernel fails while it is made or while it runs, or computes ``value`` everywhere."""

    def __init__(self, early=None, late=None, value=0.0):
        self.early, self.late, self.value = early, late, value

    def native(self, checkpoint, spec, *, device):
        if self.early:
            raise self.early

        def model(input_ids, **settings):
            if self.late:
                raise self.late
            return SimpleNamespace(logits=torch.full((*input_ids.shape, 1), self.value))

        return model


@pytest.mark.parametrize(
    ("backend", "remark"),
    [
        (Broken(late=RuntimeError("no kernel image\nfor this card")),
         "kernel failed on this device, which says: no kernel image"),
        (Broken(early=QuantizationError("quanto's kernel was not run.")), "quanto's kernel was not run."),
        (Broken(early=AssertionError("shape")), "kernel failed on this device, which says: shape"),
        (Broken(late=MemoryError()), "which says: MemoryError"),
        (Broken(value=math.nan), "kernel overflows on this device"),
        (Broken(value=math.inf), "kernel overflows on this device"),
    ],
)  # fmt: skip
def test_a_kernel_that_fails_or_overflows_leaves_a_remark_and_no_figures(
    quantized, checkpoint_of, tokenizer, monkeypatch, backend, remark
):
    monkeypatch.setattr(kernel_check, "backend_of", lambda spec: backend)
    made = quantized("rtn-4bit-g64")
    proof = probe(made, checkpoint_of("llama"), tokenizer)
    assert remark in proof.remarks[-1]
    assert proof.native_mean_difference is None
    assert replace(proof, remarks=made.proof.remarks) == made.proof


def test_quanto_s_packed_codes_are_left_alone_with_the_reason(quantized, checkpoint_of, tokenizer):
    proof = probe(quantized("quanto-int4-g128"), checkpoint_of("llama"), tokenizer)
    assert "compiles a C++ extension" in proof.remarks[-1]
