"""What a quantization_config may say, method by method."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import QuantizationError
from harness.quantize.formats import checkpoint as packed_checkpoint
from harness.quantize.submitted_spec import spec_of
from harness.submit.scan import quantization_config
from harness.submit.scan.quantization_config import IGNORED, METHODS, MODELS, fault

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 64, "packing_format": "auto_round:auto_gptq"}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
CT = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": None}},
}  # fmt: skip

# As the libraries write them today.
SAVED = [
    {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "lm_head": False, "method": "gptq",
     "format": "gptq", "checkpoint_format": "gptq", "pack_dtype": "int32", "sym": True,
     "meta": {"quantizer": ["gptqmodel:7.6.0"], "damp_percent": 0.05, "fallback": {"strategy": "rtn"}}},
    {"quant_method": "gptq", "bits": 4, "tokenizer": None, "dataset": None, "group_size": 128, "damp_percent": 0.1,
     "desc_act": False, "act_group_aware": True, "sym": True, "true_sequential": True, "format": "gptq", "meta": None,
     "backend": "auto", "model_seqlen": None, "block_name_to_quantize": None, "batch_size": 1, "pad_token_id": None,
     "module_name_preceding_first_block": None, "max_input_length": None, "cache_block_outputs": True,
     "modules_in_block_to_quantize": None, "checkpoint_format": "gptq"},
    {"quant_method": "awq", "bits": 4, "group_size": 64, "desc_act": False, "lm_head": False, "method": "awq",
     "format": "gemm", "checkpoint_format": "gemm", "pack_dtype": "int32", "zero_point": False, "version": "gemm",
     "meta": {}},
    {"quant_method": "awq", "zero_point": True, "group_size": 64, "bits": 4, "version": "gemm",
     "modules_to_not_convert": None},
    {"_load_in_4bit": True, "_load_in_8bit": False, "bnb_4bit_compute_dtype": "bfloat16",
     "bnb_4bit_quant_storage": "uint8", "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
     "llm_int8_enable_fp32_cpu_offload": False, "llm_int8_has_fp16_weight": False, "llm_int8_skip_modules": None,
     "llm_int8_threshold": 6.0, "load_in_4bit": True, "load_in_8bit": False, "quant_method": "bitsandbytes"},
    {"quant_method": "compressed-tensors", "format": "int-quantized", "global_compression_ratio": 1.4,
     "ignore": ["lm_head"], "kv_cache_scheme": None, "quantization_status": "compressed", "version": "0.12.2",
     "sparsity_config": {}, "transform_config": {},
     "config_groups": {"group_0": {
         "targets": ["Linear"], "format": "int-quantized", "output_activations": None,
         "input_activations": {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"},
         "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "group_size": None,
                     "block_structure": None, "dynamic": False, "actorder": None, "observer": "minmax",
                     "observer_kwargs": {}, "scale_dtype": None, "zp_dtype": None}}}},
]  # fmt: skip


# What AutoRound's exports write besides.
_STORY = {
    "data_type": "int", "provider": "auto-round", "autoround_version": "0.16.0", "iters": 200, "act_bits": 16,
    "enable_quanted_input": True, "low_gpu_mem_usage": True, "seqlen": 2048, "super_bits": None, "rotation": None,
}  # fmt: skip
SAVED += [
    GPTQ | _STORY | {"true_sequential": False, "damp_percent": 0.01, "block_name_to_quantize": "model.layers"},
    AWQ | _STORY | {"sym": False, "modules_to_not_convert": ["lm_head"]},
    ROUND | _STORY | {"extra_config": {"lm_head": {"bits": 16, "data_type": "float"}}},
    ROUND | {"extra_config": {"model.layers.0.mlp.up_proj": {"bits": 4, "group_size": 64, "act_bits": 16}}},
    GPTQ | {"dynamic": {"-:lm_head": {}}}, GPTQ | {"dynamic": {"-:.*lm_head.*": {}}, "lm_head": False},
    GPTQ | {"a_new_switch": False, "another": None, "more": []},
    CT | {"config_groups": {"a": {"targets": ["Linear"], "weights": WEIGHTS},
                            "b": {"targets": ["re:.*lm_head"], "weights": WEIGHTS | {"observer": "mse"}}}},
]  # fmt: skip


@pytest.mark.parametrize("config", [GPTQ, AWQ, ROUND, BNB, CT, *SAVED])
def test_configs_as_the_libraries_write_them_are_accepted(config: dict[str, Any]) -> None:
    assert fault(config) is None


@pytest.mark.parametrize("config", [None, [], "gptq", {}, {"quant_method": "exl2"}, {"quant_method": ["gptq"]},
                                    {"quant_method": "GPTQ; import os"}])  # fmt: skip
def test_an_unknown_method_is_answered_with_those_that_are_accepted(config: Any) -> None:
    assert ", ".join(METHODS) in (fault(config) or "")


def _ct(**weights: Any) -> dict[str, Any]:
    return CT | {"config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS | weights}}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPTQ | {"bits": 5}, "`bits` is 5, and accepted is 2, 3, 4 or 8"),
        (GPTQ | {"bits": True}, "`bits` is True"),
        (GPTQ | {"bits": 4.0}, "`bits` is 4.0"),
        (GPTQ | {"group_size": 0}, "`group_size` is 0, and accepted is -1 or a positive number"),
        (GPTQ | {"group_size": 1 << 40}, "`group_size`"),
        (GPTQ | {"sym": "yes"}, "`sym` is 'yes', and accepted is true or false"),
        (GPTQ | {"checkpoint_format": "marlin"}, "`checkpoint_format` is 'marlin', and accepted is gptq or gptq_v2"),
        (GPTQ | {"dynamic": {"-:.*down.*": {}}}, "`dynamic` gives -:.*down.* settings of its own"),
        (GPTQ | {"dynamic": {"+:lm_head": {"bits": 8}}}, "`dynamic` gives +:lm_head settings of its own"),
        (GPTQ | {"data_type": "fp4"}, "`data_type` is 'fp4', and accepted is int"),
        (GPTQ | {"format": "gptq_v2", "checkpoint_format": "gptq"}, "they contradict"),
        (AWQ | {"w_bit": 8}, "`w_bit` is 8, and accepted is 4"),
        (AWQ | {"q_group_size": 64}, "`group_size` is 128 and its `q_group_size` 64: they contradict"),
        (AWQ | {"sym": True}, "`sym` and `zero_point` are both True: they contradict"),
        (BNB | {"_load_in_4bit": False}, "they contradict"),
        ({"quant_method": "bitsandbytes"}, "must say load_in_4bit or load_in_8bit, and one of them"),
        (ROUND | {"packing_format": "auto_round:auto_awq", "bits": 8}, "accepted is 4 in AWQ's layout"),
        (ROUND | {"rotation": {"kind": "hadamard"}}, "`rotation` is"),
        ({"quant_method": "fp8"}, "says FP8, which is not read"),
        ({"bits": 4, "group_size": 64}, "says MLX, which is not read"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"),
        (GPTQ | {"custom_code": "x.py"}, "`custom_code` is 'x.py', and no reader knows what it means"),
        ({"quant_method": "gptq"}, "`bits` is missing: accepted is 2, 3, 4 or 8"),
        (AWQ | {"version": "gemv"}, "`version` is 'gemv', and accepted is gemm"),
        (AWQ | {"bits": 3}, "`bits` is 3, and accepted is 4"),
        (AWQ | {"do_fuse": True}, "`do_fuse`"),
        (ROUND | {"extra_config": {"lm_head": {"bits": 8}}}, "`extra_config`"),
        (ROUND | {"packing_format": "auto_round:exllamav2"}, "`packing_format`"),
        ({"quant_method": "auto-round", "bits": 4}, "`packing_format` is missing: accepted is auto_round"),
        (BNB | {"bnb_4bit_quant_type": "af4"}, "accepted is nf4 or fp4"),
        (BNB | {"bnb_4bit_quant_storage": "bfloat16"}, "`bnb_4bit_quant_storage`"),
        (BNB | {"llm_int8_has_fp16_weight": True}, "`llm_int8_has_fp16_weight`"),
        (CT | {"format": "nvfp4-pack-quantized"}, "says NVFP4, which is not read: accepted are integers"),
        (CT | {"kv_cache_scheme": {"num_bits": 8}}, "`kv_cache_scheme`"),
        (CT | {"config_groups": {}}, "accepted is groups of settings, all alike"),
        (CT | {"config_groups": {"a": []}}, "`config_groups` is {'a': []}, and accepted"),
        (CT | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "`sparsity_config`"),
        ({"quant_method": "compressed-tensors"}, "`config_groups` is missing"),
        (_ct(num_bits=3), "`num_bits` is 3, and accepted is 2, 4 or 8 in pack-quantized"),
        (_ct(group_size=None), "`group_size` is None, and strategy group needs a positive number"),
        (CT | {"config_groups": {"a": {"weights": WEIGHTS}, "b": {"weights": WEIGHTS | {"num_bits": 8}}}}, "differ"),
        (_ct(num_bits=1), "group_0.weights's `num_bits` is 1, and accepted is 2 to 8"),
        (_ct(type="float"), "group_0 says FP8, which is not read"),
        (_ct(strategy="block"), "`strategy`"),
        (_ct(dynamic=True), "`dynamic`"),
        (_ct(payload=1), "`payload` is 1, and no reader knows"),
    ],
)
def test_what_changes_the_meaning_of_the_codes_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    told = fault(config) or ""
    assert message in told
    assert "\n" not in told


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(method=st.sampled_from(METHODS), more=st.dictionaries(st.sampled_from([
    "bits", "group_size", "sym", "format", "config_groups", "packing_format", "load_in_4bit", "version", "ignore",
    "dynamic", "x"]), JSON))  # fmt: skip
def test_any_json_is_accepted_or_refused_in_words(method: str, more: dict[str, Any]) -> None:
    told = fault({"quant_method": method, **more})
    assert told is None or told.startswith("quantization_config")


class _Recording(dict[str, Any]):
    """A mapping that remembers which keys were asked for, inner mappings included."""

    def __init__(self, content: dict[str, Any], asked: set[str]) -> None:
        super().__init__({
            key: _Recording(value, asked) if isinstance(value, dict) else value for key, value in content.items()
        })  # fmt: skip
        self.asked = asked

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __iter__(self) -> Any:
        raise AssertionError("a reader goes through all keys: which it reads can't be told")


# Fields whose accepted values all mean what is computed.
PINNED = {"data_type", "method", "sparsity_config", "pack_dtype"}


@pytest.mark.parametrize("config", [GPTQ, AWQ, ROUND, ROUND | {"packing_format": "auto_round:auto_awq"}, BNB, CT])
def test_every_field_is_read_by_a_reader_or_has_one_meaning_and_no_ignored_key_is_read(config: dict[str, Any]) -> None:
    asked: set[str] = set()
    recording = _Recording(config, asked)
    spec_of(recording)
    packed_checkpoint._unpacker(recording)
    both = {"zero_point", "desc_act", "sym"} if config["quant_method"] == "auto-round" else set()
    fields = set(MODELS[config["quant_method"]].model_fields)
    if config["quant_method"] == "compressed-tensors":
        fields |= set(quantization_config.CompressedWeights.model_fields)
    assert fields - asked - PINNED - both == set()
    assert asked & IGNORED <= (
        {"version"} if config["quant_method"] in ("awq", "auto-round") else {"input_activations"}
    )
    assert not IGNORED & (fields - {"version"})


KNOWN = sorted({key for model in MODELS.values() for key in model.model_fields} - {"config_groups", "sparsity_config"})
SAID = st.sampled_from(
    [None, True, False, 2, 3, 4, 8, 64, -1, "gptq", "gptq_v2", "gemm", "GEMM", "awq", "int", "nf4", "uint8", "int32",
     "auto_round", "auto_round:auto_gptq", "auto_round:auto_awq", "pack-quantized"]
)  # fmt: skip


@given(
    config=st.sampled_from([GPTQ, AWQ, ROUND, BNB, CT]), more=st.dictionaries(st.sampled_from(KNOWN), SAID, max_size=3)
)
def test_what_is_accepted_is_read_and_what_no_reader_takes_is_refused(
    config: dict[str, Any], more: dict[str, Any]
) -> None:
    whole = {**config, **more}
    if fault(whole) is None:
        spec_of(whole)
        packed_checkpoint._unpacker(whole)
        return
    with contextlib.suppress(QuantizationError):
        spec_of(whole)


def test_the_keys_that_are_ignored_are_told() -> None:
    notes: list[str] = []
    assert fault(GPTQ | _STORY, notes) is None
    assert all(key in notes[0] for key in _STORY if key != "data_type")
    assert "bits," not in notes[0].split(": ")[1].replace("act_bits,", "").replace("super_bits", "")
