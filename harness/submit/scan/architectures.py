"""Architectures that can be scored, and the keys of config.json that transformers reads for each.

``ARCHITECTURES`` has a row for each architecture: a new one costs that row, and
a field of ``ModelConfig`` for each key that no other has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from harness.submit.scan.strict_model import Wrong, accepts, listed

_LARGEST = 1 << 24

_GEMMA_2 = (
    "attention_bias use_bidirectional_attention hidden_activation query_pre_attn_scalar sliding_window layer_types "
    "final_logit_softcapping attn_logit_softcapping"
)
_QWEN_2 = "sliding_window use_sliding_window max_window_layers layer_types"
_BIASES = "attention_bias mlp_bias"
_GRANITE = f"{_BIASES} attention_multiplier embedding_multiplier logits_scaling residual_multiplier"
_WINDOWS = "sliding_window layer_types"

ARCHITECTURES: Mapping[str, frozenset[str]] = {
    name: frozenset(keys.split())
    for name, keys in {
        "apertus": "attention_bias",
        "arcee": _BIASES,
        "cohere": "attention_bias layer_norm_eps logit_scale use_qk_norm",
        "cohere2": f"attention_bias layer_norm_eps logit_scale {_WINDOWS} sliding_window_pattern",
        "cwm": f"mlp_bias pretraining_tp {_WINDOWS}",
        "ernie4_5": "use_bias",
        "gemma": "attention_bias use_bidirectional_attention",
        "gemma2": _GEMMA_2,
        "gemma3_text": f"{_GEMMA_2} rope_local_base_freq sliding_window_pattern _sliding_window_pattern",
        "glm": "attention_bias",
        "glm4": "attention_bias",
        "gpt_neox": "attention_bias hidden_dropout classifier_dropout layer_norm_eps use_parallel_residual is_decoder "
        "rotary_pct rotary_emb_base",
        "granite": _GRANITE,
        "helium": _BIASES,
        "hyperclovax": f"{_GRANITE} use_post_norm",
        "jais2": f"{_BIASES} layer_norm_eps",
        "llama": f"{_BIASES} pretraining_tp",
        "ministral": _WINDOWS,
        "mistral": "sliding_window",
        "nanochat": "attention_bias final_logit_softcapping",
        "nemotron": f"{_BIASES} norm_eps",
        "olmo": "attention_bias clip_qkv",
        "olmo2": "attention_bias",
        "olmo3": f"attention_bias {_WINDOWS}",
        "phi": "embd_pdrop layer_norm_eps qk_layernorm resid_pdrop",
        "phi3": "resid_pdrop embd_pdrop sliding_window",
        "qwen2": _QWEN_2,
        "qwen3": f"{_QWEN_2} attention_bias",
        "seed_oss": f"{_BIASES} attention_out_bias pretraining_tp residual_dropout",
        "smollm3": f"{_BIASES} no_rope_layer_interval no_rope_layers use_sliding_window {_WINDOWS}",
        "stablelm": "hidden_dropout layer_norm_eps qk_layernorm use_parallel_residual use_qkv_bias",
        "starcoder2": "embedding_dropout norm_epsilon residual_dropout sliding_window use_bias",
        "vaultgemma": _GEMMA_2,
    }.items()
}
"""Architectures that can be scored, decoders with code inside transformers: the keys of each beyond the common ones.

A key needs a field of ``ModelConfig``, which says what it accepts.
"""

MODEL_TYPES = tuple(ARCHITECTURES)

# Their last norm has no weights.
_NORMLESS = ("nanochat", "olmo")
GGUF_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures whose GGUF files are read."""

DIVIDED = (
    "llama", "gemma2", "gemma3_text", "gpt_neox", "arcee", "cohere", "cohere2", "cwm", "hyperclovax", "jais2",
    "stablelm", "vaultgemma",
)  # fmt: skip
"""Architectures whose heads must share out the hidden size even where ``head_dim`` is given."""

FILLED: Mapping[str, tuple[str, ...]] = {
    "num_key_value_heads": (
        "cwm", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "helium", "ministral", "mistral", "nemotron",
        "stablelm", "starcoder2", "vaultgemma",
    ),
    "head_dim": (
        "apertus", "cohere", "cohere2", "cwm", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "granite", "helium",
        "ministral", "nanochat", "olmo", "olmo2", "olmo3", "phi", "phi3", "qwen2", "qwen3", "smollm3", "vaultgemma",
    ),
    "bos_token_id": ("cwm",), "sliding_window": ("cwm",),
}  # fmt: skip
"""Keys that may be left out and not be null, with the architectures of which that is so."""

_Activation = Literal[
    "gelu", "gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "silu", "swish",
    "xielu",
]  # fmt: skip
_Dtype = Literal["bfloat16", "float16", "float32"]
_LayerType = Literal["full_attention", "sliding_attention"]

OF_THE_CLASS = frozenset({
    "allow_global_per_layer_attribute_access", "attribute_map", "base_config_key", "base_model_ep_plan",
    "base_model_fsdp_plan", "base_model_pp_plan", "base_model_tp_plan", "convert_rope_params_to_dict",
    "default_config_fields", "default_rope_type", "default_theta", "dict_dtype_to_str", "extra_config_files",
    "extra_files", "from_dict", "from_json_file", "from_pretrained", "get_config_dict", "get_mtp_config",
    "get_text_config", "ignore_keys_at_rope_validation", "is_custom_code", "is_heterogeneous", "is_remote_code",
    "nested_rope_parameter_keys", "per_layer_attributes", "push_to_hub", "register_for_auto_class",
    "save_pretrained", "serialize_explicit_per_layer_config", "standardize_rope_params", "sub_configs",
    "sub_configs_defaults", "to_dict", "to_diff_dict", "to_json_file", "to_json_string", "update",
    "update_from_string", "use_return_dict", "validate", "validate_architecture", "validate_layer_type",
    "validate_output_attentions", "validate_rope", "validate_token_ids", "embed_dim", "num_heads",
})  # fmt: skip
"""Methods and settings of transformers' base class, which a key would replace, and what it holds ``head_dim`` against.

Not even null may stand there.
"""

SHARED = frozenset({
    "attention_chunk_size", "attn_implementation", "chain_hidden_post_norm", "compile_config", "distributed_config",
    "experts_implementation", "first_k_dense_replace", "fusion_config", "is_causal", "kernel_config",
    "kv_sharing_modes", "layer_types", "logits_mup_width_multiplier", "mlp_layer_types", "mtp_hidden_states_first",
    "mtp_layer_types", "mtp_mlp_layer_types", "mtp_per_layer_config", "num_mtp_layers",
    "number_of_conv_states", "per_layer_config", "qk_head_dim", "rope_local_base_freq", "sliding_window",
    "text_config", "transformers_weights", "unpadded_vocab_size", "use_bidirectional_attention", "vision_config",
})  # fmt: skip
"""Keys that transformers' shared code reads of any config: null says nothing."""


def _fraction(value: object) -> object:
    if type(value) is int:
        raise ValueError("transformers takes 1.0 and no 1")
    return value


def _flag(value: object) -> object:
    if not isinstance(value, bool | None):
        raise ValueError("0 is equal to false and no flag")
    return value


_Float = Annotated[float, BeforeValidator(_fraction)]
_False = Annotated[Literal[False], BeforeValidator(_flag)]
_Count = accepts("a whole number above 0", gt=0)
_Side = accepts(f"a whole number from 1 to {_LARGEST}", gt=0, le=_LARGEST)
_Positive = accepts("a number above 0", gt=0)
_Fraction = accepts("a number above 0, with a decimal point", gt=0)
_Number = accepts("a number from 0 to 1", ge=0, le=1)
_Flag = accepts("true or false")
_Off = accepts("false or nothing")
_Token = accepts("a token's number, or nothing")
_AsDtype = accepts(", ".join(get_args(_Dtype)))
_Act = accepts(", ".join(get_args(_Activation)))
_Rope = accepts("a mapping with rope_type")


class ModelConfig(BaseModel):
    """The keys of config.json that transformers reads, for all architectures together."""

    model_config = ConfigDict(strict=True)

    vocab_size: int = Field(gt=0, description="a whole number above 0")
    hidden_size: int = Field(gt=0, description="a whole number above 0")
    num_hidden_layers: int = Field(gt=0, description="a whole number above 0")
    intermediate_size: int = Field(gt=0, description="a whole number above 0")
    num_attention_heads: int = Field(gt=0, description="a whole number above 0")
    num_key_value_heads: int | None = _Side
    head_dim: int | None = _Side
    max_position_embeddings: int = _Side
    original_max_position_embeddings: int = _Side
    hidden_act: _Activation = _Act
    hidden_activation: _Activation = _Act
    rms_norm_eps: _Float = _Positive
    layer_norm_eps: _Float = _Positive
    norm_eps: _Float = _Positive
    norm_epsilon: _Float = _Positive
    initializer_range: _Float = accepts("a number from 0 to 1", ge=0, le=1)
    tie_word_embeddings: bool = _Flag
    use_cache: bool = _Flag
    attention_bias: bool = _Flag
    mlp_bias: bool = _Flag
    use_parallel_residual: bool = _Flag
    use_sliding_window: bool = _Flag
    is_decoder: bool = _Flag
    attention_out_bias: bool = _Flag
    qk_layernorm: bool = _Flag
    use_bias: bool = _Flag
    use_post_norm: bool = _Flag
    use_qk_norm: bool = _Flag
    use_qkv_bias: bool = _Flag
    output_hidden_states: bool | None = _Flag
    attention_dropout: _Float = _Number
    hidden_dropout: _Float = _Number
    classifier_dropout: _Float = _Number
    resid_pdrop: _Float = _Number
    embd_pdrop: _Float = _Number
    embedding_dropout: _Float = _Number
    residual_dropout: _Float = _Number
    attention_multiplier: _Float = _Positive
    embedding_multiplier: _Float = _Positive
    logits_scaling: _Float = _Positive
    residual_multiplier: _Float = _Positive
    logit_scale: _Float = _Positive
    clip_qkv: _Float | None = _Positive
    no_rope_layer_interval: int = _Count
    no_rope_layers: list[Literal[0, 1]] | None = accepts("0 or 1 for each layer")
    pretraining_tp: int = _Count
    pad_token_id: int | None = _Token
    bos_token_id: int | None = _Token
    eos_token_id: int | list[int] | None = accepts("a token's number, a list of such, or nothing")
    sliding_window: int | None = _Side
    max_window_layers: int = accepts("a whole number from 0 on", ge=0)
    sliding_window_pattern: int = _Side
    layer_types: list[_LayerType] | None = accepts("full_attention or sliding_attention for each layer")
    query_pre_attn_scalar: int = _Count
    attn_logit_softcapping: _Float | None = _Fraction
    final_logit_softcapping: _Float | None = _Fraction
    use_bidirectional_attention: _False | None = _Off
    is_encoder_decoder: _False = _Off
    output_attentions: _False | None = _Off
    return_dict: Literal[True] | None = accepts("true or nothing")
    chunk_size_feed_forward: Literal[0] = accepts("0")
    dtype: _Dtype | None = _AsDtype
    torch_dtype: _Dtype | None = _AsDtype
    architectures: list[str] | None = accepts("a list of names")
    transformers_version: str | None = accepts("text")
    name_or_path: str | None = accepts("text")
    id2label: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], str] | None = accepts("numbers with names")
    label2id: dict[str, int] | None = accepts("names with numbers")
    num_labels: int = accepts("a whole number from 1 to 10000", gt=0, le=10_000)
    problem_type: None = accepts("nothing")
    rope_parameters: dict[str, Any] | None = _Rope
    rope_scaling: dict[str, Any] | None = _Rope
    rope_theta: float = _Positive
    rope_local_base_freq: float = _Positive
    rotary_emb_base: float = _Positive
    partial_rotary_factor: float = accepts("a number above 0, up to 1", gt=0, le=1)
    rotary_pct: float = accepts("a number above 0, up to 1", gt=0, le=1)


_OWN = frozenset().union(*ARCHITECTURES.values())
COMMON = frozenset(ModelConfig.model_fields) - _OWN
"""Keys that transformers reads for every architecture."""

# Tensors outside the layers.
_OUTSIDE = re.compile(
    r"(?:(?:model|gpt_neox)\.)?(?:embed_tokens\.weight|embed_in\.weight|(?:norm|final_layer_?norm)\.(?:weight|bias))|"
    r"(?:lm_head|embed_out)\.(?:weight|bias)"
)


def name_faults(tensors: Iterable[str], kind: str) -> Iterator[Wrong]:
    """Yields tensors that a model of these architectures has not, or lacks: names alone are looked at."""
    layers: dict[str, set[str]] = {}
    outside = set()
    for name in tensors:
        before, _, rest = name.rpartition("layers.") if "layers." in name else ("", "", name)
        number, _, own = rest.partition(".")
        if before in ("", "model.", "gpt_neox.") and own and number.isdigit():
            layers.setdefault(number, set()).add(own)
        else:
            outside.add(name)
    uneven = {f"layers.{number}.{own}" for own in set().union(*layers.values())
              for number, names in layers.items() if own not in names}  # fmt: skip
    strange = {name for name in outside if not _OUTSIDE.fullmatch(name)}
    if kind not in _NORMLESS and not any("norm" in name for name in outside):
        uneven.add("the last norm")
    for what, names in (("lack", uneven), ("hold", strange)):
        if names:
            told = f"the weights {what} {listed(names)}, which {'no' if what == 'hold' else 'each'} {kind} model has"
            yield f"{told}: save the whole model again with save_pretrained", None, None
