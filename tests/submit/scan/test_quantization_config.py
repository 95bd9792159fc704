"""What a quantization_config may say, method by method."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.submit.scan.quantization_config import METHODS, fault

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
        (GPTQ | {"dynamic": {"-:.*down.*": {}}}, "`dynamic`"),
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
