"""The layers that a config describes are those that peft adapts, with peft's ranks and scales, on random configs."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM

from harness.submit.scan import adapter_fields, adapter_modules, name_patterns
from harness.submit.scan.adapter_fields import AdapterConfig, read_adapter
from harness.submit.scan.model_config import MODEL_TYPES
from harness.submit.scan.safetensors import Tensor

_SIZES = {
    "vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip


@functools.cache
def _model(kind: str) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **_SIZES))


def _tensors(kind: str) -> dict[str, Tensor]:
    return {name: Tensor(dtype="F32", shape=tuple(value.shape), start=0, end=0)
            for name, value in _model(kind).state_dict().items()}  # fmt: skip


def _by_peft(kind: str, config: dict[str, Any]) -> dict[str, tuple[int, float]] | None:
    """Returns rank and scale of each layer that peft adapts, None where it refuses the config."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(copy.deepcopy(_model(kind)), LoraConfig(**config), low_cpu_mem_usage=True)
    except (ValueError, TypeError):
        return None
    layers = model.get_base_model().named_modules()
    return {
        name: (layer.r["default"], layer.scaling["default"]) for name, layer in layers if isinstance(layer, LoraLayer)
    }


def _by_us(kind: str, config: dict[str, Any]) -> dict[str, tuple[int, float]] | None:
    try:
        described = adapter_modules.described(
            AdapterConfig.model_validate({"peft_type": "LORA"} | config), _tensors(kind)
        )
    except ValueError:
        return None
    return {name: (layer.rank, layer.alpha / layer.rank) for name, layer in described.items()} or None


_MODULES = (
    "q_proj", "k_proj", "self_attn.v_proj", "down_proj", "mlp.up_proj", "layers.1.self_attn.o_proj", "lm_head",
    "embed_tokens", "model.layers.2.mlp.gate_proj", "query_key_value", "dense", "attention.dense", "qkv_proj",
    "1.mlp.down_proj", "roj", "", "model", "c_attn",
)  # fmt: skip
_PATTERNS = (
    r".*q_proj", r"^(?!.*layers\.1\.).*(?:k|v)_proj", r".*\.(q_proj|k_proj)$",
    r"model\.layers\.\d+\.mlp\.(up|down)_proj",
    r"(?:.*?(?:language|text).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:q_proj|up_proj))", r".*lm_head",
    r".*(dense|query_key_value)", r".*[02].*down_proj", r"q_proj", r"(model\.)?layers.*", r".*_proj{1}",
    r".*\.layers\.[^1]\..*_proj",
)  # fmt: skip
_RANKED = (
    "q_proj", "^model.layers.0.self_attn.k_proj", r"layers\.[01]\..*_proj", "roj", "mlp.down.proj", r"^.*v_proj",
    "down_proj|q_proj", "1.mlp.up_proj", "lm_head", "dense",
)  # fmt: skip

_LISTS = some.lists(some.sampled_from(_MODULES), min_size=1, max_size=5)
_CONFIGS = some.fixed_dictionaries(
    {
        "r": some.integers(1, 5),
        "lora_alpha": some.sampled_from([8, 0, -16, 3.5]),
        "target_modules": some.one_of(_LISTS, some.sampled_from((*_PATTERNS, "all-linear", "All-Linear"))),
    },
    optional={
        "exclude_modules": some.one_of(_LISTS, some.sampled_from(_PATTERNS)),
        "layers_to_transform": some.one_of(some.integers(0, 4), some.lists(some.integers(0, 4), max_size=3)),
        "layers_pattern": some.sampled_from(["layers", "h", [], ["layers"], ["h", "layers"], "lay.rs", "mlp"]),
        "rank_pattern": some.dictionaries(some.sampled_from(_RANKED), some.integers(1, 4), max_size=3),
        "alpha_pattern": some.dictionaries(some.sampled_from(_RANKED), some.sampled_from([2, -4, 0.5]), max_size=3),
    },
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(config=_CONFIGS, kind=some.sampled_from(["llama", "llama", "gpt_neox", "phi3"]))
def test_layers_ranks_and_scales_are_those_of_peft(config: dict[str, Any], kind: str) -> None:
    theirs = _by_peft(kind, config)
    if theirs is not None:
        assert _by_us(kind, config) == theirs


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_all_linear_means_the_same_in_every_architecture(kind: str) -> None:
    config = {"r": 2, "target_modules": "all-linear", "exclude_modules": ["down_proj"]}
    layers = _by_us(kind, config)
    assert layers
    assert layers == _by_peft(kind, config)


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_a_config_that_says_nothing_of_ties_means_what_the_library_takes(kind: str) -> None:
    tied = AutoConfig.for_model(kind).tie_word_embeddings
    assert (kind in adapter_modules.TIED_UNLESS_SAID) == tied


def test_every_field_of_peft_is_known_and_a_default_config_has_no_fault(tmp_path: Any) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"])
    config.save_pretrained(tmp_path)
    read, faults, notes = read_adapter(tmp_path / "adapter_config.json")
    assert read is not None
    assert (faults, notes) == ([], [])
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert fields - set(AdapterConfig.model_fields) <= adapter_fields.IGNORED


_PIECES = (
    "a",
    ".",
    "_",
    r"\.",
    ".*",
    "(?:",
    "(",
    ")",
    "|",
    "[",
    "]",
    "^",
    "-",
    "a",
    "+",
    "?",
    r"\d",
    "{1,2}",
    "$",
    r"\b",
    "(?!",
    "b",
)


@settings(max_examples=100, deadline=None)
@given(
    pattern=some.lists(some.sampled_from(_PIECES), max_size=9).map("".join),
    name=some.text(alphabet="ab._1", max_size=8),
)
def test_a_pattern_means_what_python_s_own_engine_makes_of_it(pattern: str, name: str) -> None:
    try:
        name_patterns.compiled(pattern)
    except ValueError:
        return
    matcher = name_patterns.Matcher()
    assert bool(matcher.match(pattern, name)) == bool(re.match(pattern, name))
    assert bool(matcher.match(pattern, name, full=True)) == bool(re.fullmatch(pattern, name))


@pytest.mark.parametrize("pattern", [
    "(a", "x" * 2001, "(?:q_proj){e<=1}", r"\p{L}+", "[[:alpha:]]", "[a--b]", "(?i)q", "(" * 1500, "a{2}{3}",
])  # fmt: skip
def test_what_two_engines_could_read_differently_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"pattern|expression"):
        name_patterns.compiled(pattern)


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern"])
def test_a_pattern_that_would_never_end_is_stopped(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_patterns, "SECONDS", 0.2)
    endless = r"(?:.|..)+[0-9]"
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}
    config |= {field: {endless: 2} if field == "rank_pattern" else endless}
    base = {f"model.layers.1.self_attn.{'x' * 60}.q_proj.weight": Tensor(dtype="F32", shape=(4, 4), start=0, end=0)}
    factors = {
        f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight":
            Tensor(dtype="F32", shape=shape, start=0, end=0)
        for name in base for part, shape in (("A", (2, 4)), ("B", (4, 2)))
    }  # fmt: skip
    faults = list(adapter_modules.factor_faults(AdapterConfig.model_validate(config), factors, base))
    assert faults == ["its patterns take more than 10 seconds over the names of layers: list the layers by name"]
