"""A tiny random model of each architecture of the list, every switch of its own turned on and no weight as it began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.submit.scan.architectures import ARCHITECTURES

SIZES = {
    "vocab_size": 360, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 768, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip

# Values that make another model than the defaults do, of each key that a row may have.
SWITCHED = {
    "attention_bias": True, "attention_multiplier": 0.3, "attention_out_bias": True, "attn_logit_softcapping": 20.0,
    "clip_qkv": 0.5, "embedding_multiplier": 2.0, "final_logit_softcapping": 5.0,
    "layer_types": ["sliding_attention", "full_attention"], "logit_scale": 0.5, "logits_scaling": 3.0, "mlp_bias": True,
    "no_rope_layer_interval": 2, "qk_layernorm": True, "query_pre_attn_scalar": 8, "residual_multiplier": 0.5,
    "sliding_window": 24, "use_bias": True, "use_qk_norm": True, "use_qkv_bias": True, "use_sliding_window": True,
}  # fmt: skip


def model_of(kind: str, **changes: Any) -> Any:
    """Returns a float32 model in eval mode; always the same weights, all of them drawn at random."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    switched = {key: value for key, value in SWITCHED.items() if key in ARCHITECTURES[kind]}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SIZES | switched | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return model


def save(kind: str, folder: Path, **changes: Any) -> Path:
    """Saves such a model in bfloat16; returns the folder."""
    model_of(kind, **changes).bfloat16().save_pretrained(folder)
    return folder
