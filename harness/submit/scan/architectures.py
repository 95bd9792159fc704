"""The architectures that can be scored, one row each: what their configs and files call things."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Architecture:
    """What one architecture has beside what all have.

    Attributes:
        keys: Keys of its config.json that are not common to all.
        names: What its config calls a size, where that is not the usual name.
        four_times: Whether a config may leave ``intermediate_size`` out, which
            is four times ``hidden_size`` then.
    """

    keys: frozenset[str] = frozenset()
    names: Mapping[str, str] = field(default_factory=dict)
    four_times: bool = False

    def own_keys(self) -> frozenset[str]:
        """Returns all keys that this architecture's config may have beside the common ones."""
        return self.keys | set(self.names.values())


def _with(*keys: str) -> Architecture:
    return Architecture(frozenset(keys))


_SCALES = ("attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier")

ARCHITECTURES: Mapping[str, Architecture] = {
    "apertus": _with("post_norm", "qk_norm"),
    "arcee": _with(),
    "bloom": Architecture(
        frozenset({"apply_residual_connection_post_layernorm", "attention_softmax_in_fp32", "bias_dropout_fusion",
                   "layer_norm_epsilon", "masked_softmax_fusion", "n_inner", "offset_alibi", "seq_length",
                   "skip_bias_add", "skip_bias_add_qkv", "slow_but_exact", "unk_token_id"}),
        {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
        four_times=True,
    ),
    "cohere": _with("logit_scale", "use_qk_norm"),
    "cohere2": _with("logit_scale"),
    "cwm": _with(),
    "ernie4_5": _with("use_bias"),
    "exaone4": _with(),
    "gemma": _with(),
    "gemma2": _with(),
    "gemma3_text": _with(),
    "glm": _with(),
    "glm4": _with(),
    "gpt_neo": Architecture(
        frozenset({"activation_function", "attention_layers", "attention_types", "embed_dropout", "layer_norm_epsilon",
                   "resid_dropout", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
                   "summary_type", "summary_use_proj", "window_size"}),
        {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"},
        four_times=True,
    ),
    "gpt_neox": _with(),
    "gptj": Architecture(
        frozenset({"activation_function", "attn_pdrop", "gradient_checkpointing", "layer_norm_epsilon", "rotary",
                   "rotary_dim", "scale_attn_weights", "summary_activation", "summary_first_dropout",
                   "summary_proj_to_labels", "summary_type", "summary_use_proj"}),
        {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
         "intermediate_size": "n_inner", "max_position_embeddings": "n_positions"},
        four_times=True,
    ),
    "granite": _with(*_SCALES),
    "helium": _with(),
    "hunyuan_v1_dense": _with("eod_token_id"),
    "internlm3": _with("bias", "qkv_bias"),
    "jais2": _with(),
    "llama": _with(),
    "ministral": _with(),
    "ministral3": _with(),
    "mistral": _with(),
    "nanochat": _with(),
    "nemotron": _with("norm_eps"),
    "olmo": _with("clip_qkv"),
    "olmo2": _with(),
    "olmo3": _with(),
    "opt": Architecture(
        frozenset({"_remove_final_layer_norm", "activation_dropout", "activation_function", "do_layer_norm_before",
                   "dropout", "enable_bias", "init_std", "layer_norm_elementwise_affine", "layerdrop",
                   "word_embed_proj_dim"}),
        {"intermediate_size": "ffn_dim"},
    ),
    "persimmon": _with("qk_layernorm"),
    "phi": _with("qk_layernorm"),
    "phi3": _with(),
    "qwen2": _with(),
    "qwen3": _with(),
    "seed_oss": _with("attention_out_bias", "residual_dropout"),
    "smollm3": _with("no_rope_layer_interval", "no_rope_layers"),
    "stablelm": _with("qk_layernorm", "use_qkv_bias"),
    "starcoder2": _with("embedding_dropout", "norm_epsilon", "residual_dropout", "use_bias"),
    "vaultgemma": _with(),
}  # fmt: skip
"""Decoders with code inside transformers whose blocks are made of linear layers; every row is run by the tests."""
