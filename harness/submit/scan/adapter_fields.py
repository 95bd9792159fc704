"""The fields of adapter_config.json: LoRA that can be merged exactly.

Two questions decide about a field, in the fields of peft 0.3 to 0.21: does it change the model's numbers, and are they
computed exactly here? What does nothing is noted and ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from harness.errors import Fault
from harness.submit.scan.model_config import read_config
from harness.submit.scan.name_patterns import ENDING, LONGEST, MOST, PLACE, compiled, is_plain
from harness.submit.scan.strict_model import faults_of, is_empty, listed
from harness.submit.strict_parsing import visible

MAX_RANK = 8192
"""Largest rank: half of what the widest listed architectures have as rows and columns."""

_MOST = 20_000

_PART = rf"a regular expression of at most {LONGEST} characters"


def _pattern(frame: str) -> AfterValidator:
    """Accepts what peft can run as a regular expression inside its own."""

    def check(text: str) -> str:
        if not is_plain(text):
            compiled(frame.format(text))
        return text

    return AfterValidator(check)


def _few(patterns: Any) -> Any:
    if isinstance(patterns, dict) and sum(not is_plain(pattern) for pattern in patterns) > MOST:
        raise ValueError("too many regular expressions")
    return patterns


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _nothing(value: Any) -> Any:
    if not is_empty(value):
        raise ValueError("it must be empty")
    return value


_Name = Annotated[str, Field(max_length=500)]
_Names = Annotated[list[_Name], Field(max_length=_MOST)]
_Regex = Annotated[str, _pattern("{}")]
_Rank = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=MAX_RANK)]
_Number = Annotated[float, Field(ge=-1e30, le=1e30)]
_Key = Annotated[str, Field(max_length=500), _pattern(ENDING)]
_Place = Annotated[str, Field(max_length=500), _pattern(PLACE)]
_Flag = bool | None
_Off = Annotated[Any, AfterValidator(_nothing)]
_Index = Annotated[int, Field(le=10**6)]


def _number_of(what: str) -> Any:
    return Field(
        default=None, max_length=_MOST, description=f"names of layers, or up to {MOST} regular expressions, with {what}"
    )


def _no(what: str) -> Any:
    return Field(default=None, description=f"nothing: {what} can't be merged exactly here")


class AdapterConfig(BaseModel):
    """The fields of adapter_config.json that decide what an adapter's merge gives, or whether it can be merged."""

    model_config = ConfigDict(extra="allow", strict=True)

    peft_type: Literal["LORA"] = Field(description="LORA")
    task_type: Literal["CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"] | None = Field(
        default=None, description="CAUSAL_LM"
    )
    r: _Rank = Field(description=f"1 to {MAX_RANK}")
    lora_alpha: _Number = Field(default=8, description="a number between -1e30 and 1e30")
    rank_pattern: Annotated[dict[_Key, _Rank], BeforeValidator(_few)] | None = _number_of(f"1 to {MAX_RANK}")
    alpha_pattern: Annotated[dict[_Key, _Number], BeforeValidator(_few)] | None = _number_of("numbers")
    target_modules: _Names | _Regex = Field(description=f"a list of module names, all-linear, or {_PART}")
    exclude_modules: _Names | _Regex | None = Field(default=None, description=f"a list of module names, or {_PART}")
    layers_to_transform: _Index | Annotated[list[_Index], Field(max_length=_MOST)] | None = Field(
        default=None, description="a layer number, or a list of such"
    )
    layers_pattern: _Place | Annotated[list[_Place], Field(max_length=20)] | None = Field(
        default=None, description="the name of the list of layers, e.g. layers"
    )
    use_rslora: _Flag = Field(default=False, description="true or false")
    use_dora: _Flag = Field(default=False, description="true or false")
    # PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change the base as well, so that it is not the one of the manifest.
    init_lora_weights: bool | Literal["gaussian", "eva", "orthogonal", "mica"] | None = Field(
        default=True,
        description="true, false, gaussian, eva, orthogonal or mica, which leave the base as it is: of pissa, olora, "
        "corda, loftq and lora_ga submit the merged full_model",
    )
    bias: Literal["none", "all", "lora_only"] | None = Field(default="none", description="none, all or lora_only")
    lora_dropout: float | None = Field(default=0.0, ge=0, le=1, description="0 to 1")
    base_model_name_or_path: _Name | None = Field(default=None, description="text")

    alora_invocation_tokens: _Off = _no("an adapter that acts from some token on")
    arrow_config: _Off = _no("routing between adapters")
    enable_lora: _Off = _no("LoRA on parts of a fused matrix")
    kasa_config: _Off = _no("cut singular values of the base")
    layer_replication: _Off = _no("repeated layers")
    lora_bias: _Off = _no("a bias beside the factors")
    megatron_config: _Off = _no("a layer of Megatron")
    modules_to_save: _Off = _no("modules that were trained whole")
    monteclora_config: _Off = _no("sampled factors")
    target_parameters: _Off = _no("factors of bare parameters")
    trainable_token_indices: _Off = _no("trained embeddings of single tokens")
    use_bdlora: _Off = _no("factors in diagonal blocks")
    use_qalora: _Off = _no("pooled inputs (QA-LoRA)")
    velora_config: _Off = _no("VeLoRA")


# Fields that concern training, loading or bookkeeping; peft's first, then those of tools around it.
IGNORED = frozenset(
    {
        "auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "fan_in_fan_out", "inference_mode",
        "loftq_config", "lora_ga_config", "megatron_core", "merge_weights", "peft_version", "qalora_group_size",
        "revision", "runtime_config",
        "created_by", "dataset", "ephemeral_gpu_offload", "library_name", "lora_lr_ratio", "loraplus_lr_embedding",
        "loraplus_lr_ratio", "max_seq_length", "model_type", "neftune_noise_alpha", "random_state", "tags",
        "torch_dtype", "transformers_version", "unsloth_fixed", "unsloth_version", "use_gradient_checkpointing",
    }
)  # fmt: skip
# What every config of peft has says nothing to a reader.
_UNTOLD = frozenset(
    {"inference_mode", "megatron_core", "merge_weights", "peft_version", "qalora_group_size", "revision"}
)


def read_adapter(path: Path) -> tuple[AdapterConfig | None, list[Fault], list[str]]:
    """Reads an adapter_config.json.

    Args:
        path: The file.

    Returns:
        The config, None where it has faults; the faults; sentences about what
        is ignored.

    Raises:
        UnsafeSubmissionError: The file can't be read strictly.
    """
    raw = read_config(path)
    faults = [fault(path, *wrong) for wrong in faults_of(AdapterConfig, raw)]
    config = None if faults else AdapterConfig.model_validate(raw)
    known = {*AdapterConfig.model_fields, *IGNORED}
    for key in sorted(set(raw) - known):
        if not is_empty(raw[key]):
            what = f"`{key[:80]}` is no field of peft 0.3 to 0.21, so nobody knows what it does to the model: remove it"
            faults.append(fault(path, f"{what} if it does nothing", key))
    if isinstance(raw.get("target_modules"), str):
        for key in ("layers_to_transform", "layers_pattern"):
            if raw.get(key) is not None:
                what = f"`{key}` belongs to a list of `target_modules`, which is a text here: name the layers in one"
                faults.append(fault(path, what, key))
    ignored = {key for key in set(raw) - set(AdapterConfig.model_fields) - _UNTOLD if key not in IGNORED or raw[key]}
    note = f"adapter_config.json: ignored, since they change no number of the merged model: {listed(ignored)}."
    return (None if faults else config), faults, [note] if ignored else []


def fault(path: Path, what: str, field: str | None = None, accepted: str | None = None) -> Fault:
    """Returns a fault of an adapter_config.json, with what can't be seen in a stranger's names escaped."""
    return Fault(f"{path}: {visible(what)}.", file=str(path), field=field, accepted=accepted)
