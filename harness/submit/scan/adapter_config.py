"""Checks adapter_config.json and its factors: only LoRA that can be merged exactly."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import Fault, UnsafeSubmissionError
from harness.submit.scan.model_config import MAX_TOLD, Wrong, read_config
from harness.submit.scan.safetensors import Tensor
from harness.submit.strict_parsing import visible
from harness.submit.weight_files import HUB, HUB_NAME

MAX_RANK = 512
MAX_ALPHA = 4096.0


def _empty(value: Any) -> bool:
    return value is None or value is False or value == {} or value == []


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _text(value: Any) -> bool:
    return value is None or (isinstance(value, str) and len(value) <= 500)


def _names(value: Any) -> bool:
    """Module names only: peft takes other text as a regular expression."""
    listed = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return value == "all-linear" or (listed and all(re.fullmatch(r"[A-Za-z0-9_.]{1,200}", name) for name in value))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _per_module(largest: float) -> Any:
    """Plain module names to numbers; peft reads the names as regular expressions."""

    def accept(value: Any) -> bool:
        return isinstance(value, dict) and all(
            re.fullmatch(r"[A-Za-z0-9_.]{1,200}", name) and _number(number) and 0 < number <= largest
            for name, number in value.items()
        )

    return accept


_UNSUPPORTED = (
    "alora_invocation_tokens", "arrow_config", "auto_mapping", "corda_config", "eva_config",
    "exclude_modules", "fan_in_fan_out", "kasa_config", "layer_replication", "layers_pattern", "loftq_config",
    "lora_bias", "lora_ga_config", "megatron_config", "modules_to_save", "monteclora_config",
    "runtime_config", "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora",
    "velora_config",
)  # fmt: skip

_EMPTY = (_empty, "nothing: it changes the model in ways that are not merged here")

_ADAPTER_KEYS: Mapping[str, tuple[Any, str]] = {
    "peft_type": (lambda value: value == "LORA", "LORA"),
    "task_type": (lambda value: value in (None, "CAUSAL_LM"), "CAUSAL_LM"),
    "r": (lambda value: _number(value) and value == int(value) and 0 < value <= MAX_RANK, f"1 to {MAX_RANK}"),
    "lora_alpha": (lambda value: _number(value) and 0 < value <= MAX_ALPHA, f"a number up to {MAX_ALPHA:.0f}"),
    "rank_pattern": (_per_module(MAX_RANK), f"module names with 1 to {MAX_RANK}"),
    "alpha_pattern": (_per_module(MAX_ALPHA), f"module names with numbers up to {MAX_ALPHA:.0f}"),
    "target_modules": (_names, "a list of module names, or all-linear"),
    "bias": (lambda value: value == "none", "none"),
    # PiSSA, LoftQ and their like change the base as well, so the base named in the manifest is not theirs.
    "init_lora_weights": (lambda value: _flag(value) or value in ("gaussian", "orthogonal"), "true, false or gaussian"),
    "use_rslora": (_flag, "true or false"),
    "use_dora": (_flag, "true or false"),
    "lora_dropout": (lambda value: _number(value) and 0 <= value < 1, "0 to 1"),
    "inference_mode": (_flag, "true or false"),
    "layers_to_transform": (
        lambda value: value is None or (isinstance(value, list) and all(_number(each) for each in value)),
        "a list of layer numbers",
    ),
    "qalora_group_size": (_number, "a number"),
    "ensure_weight_tying": (_flag, "true or false"),
    "megatron_core": (_text, "text"),
    "peft_version": (_text, "text"),
    "base_model_name_or_path": (_text, "text"),
    "revision": (_text, "text"),
    **dict.fromkeys(_UNSUPPORTED, _EMPTY),
}

_FACTOR = re.compile(r"base_model\.model\.(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector)")


def check_adapter(
    path: Path, tensors: Mapping[str, Tensor], base: Mapping[str, Tensor] | None, base_on_hub: str | None = None,
    *, notes: list[str] | None = None,
) -> None:  # fmt: skip
    """Checks an adapter_config.json against the allow-list, and the factors against rank and base.

    Args:
        path: The config.
        tensors: The adapter's own.
        base: The base model's, None where they are not here yet.
        base_on_hub: ``hf://owner/name`` of the base that the manifest names,
            None where it lies here: names of local folders tell nothing.
        notes: Takes a sentence for whatever is ignored.

    Raises:
        UnsafeSubmissionError: Another kind of adapter than plain, rank-stabilized or weight-decomposed
            LoRA, another base than the manifest's, limits passed, factors
            without their partner, or modules that the base hasn't.
    """
    config = read_config(path)
    wrong = [*_setting_faults(config), *_base_name_faults(config, base_on_hub), *_factor_faults(config, tensors, base)]
    if wrong:
        raise UnsafeSubmissionError(
            *(Fault(f"{path}: {told}.", file=str(path), field=field, accepted=may) for told, field, may in wrong)
        )


def _setting_faults(config: Mapping[str, Any]) -> Iterator[Wrong]:
    for key, value in config.items():
        if key not in _ADAPTER_KEYS:
            yield f"the key {key[:80]!r} is not on the list of accepted ones: remove it", key, None
        elif not _ADAPTER_KEYS[key][0](value):
            accepted = _ADAPTER_KEYS[key][1]
            yield f"`{key}` is {str(value)[:60]!r}, and accepted is {accepted}", key, accepted
    for key in ("peft_type", "r", "target_modules"):
        if key not in config:
            yield f"`{key}` is missing: accepted is {_ADAPTER_KEYS[key][1]}", key, _ADAPTER_KEYS[key][1]


def _base_name_faults(config: Mapping[str, Any], base_on_hub: str | None) -> Iterator[Wrong]:
    told, key = config.get("base_model_name_or_path"), "base_model_name_or_path"
    if base_on_hub is None or not isinstance(told, str) or not HUB_NAME.fullmatch(told):
        return
    named = base_on_hub.removeprefix(HUB)
    # The hub takes names in any case.
    if told.casefold() != named.casefold():
        yield f"`{key}` is {told!r}, and `base_model` in submission.yaml leads to {named!r}: correct either", key, named


def _factor_faults(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], base: Mapping[str, Tensor] | None
) -> Iterator[Wrong]:
    modules: dict[str, dict[str, Tensor]] = {}
    strange = []
    for name, tensor in tensors.items():
        factor = _FACTOR.fullmatch(name)
        if factor is None:
            strange.append(name)
        else:
            modules.setdefault(factor.group(1), {})[factor.group(2).removesuffix(".weight")] = tensor
    wrong = [f"tensor {name!r} is no LoRA factor: submit an adapter that peft's save_pretrained wrote"
             for name in strange]  # fmt: skip
    for module, factors in modules.items():
        told = _factors_fault(module, factors, config)
        if told is None and base is not None:
            told = _base_fault(module, factors, base)
        if told is not None:
            # Modules are named by the tensors' file.
            wrong.append(visible(told))
    for told in wrong[:MAX_TOLD]:
        yield told, None, None
    if len(wrong) > MAX_TOLD:
        yield f"{len(wrong) - MAX_TOLD} more of its tensors and modules have faults like these", None, None


def _factors_fault(module: str, factors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str | None:
    wanted = {"lora_A", "lora_B", *(["lora_magnitude_vector"] if config.get("use_dora") is True else [])}
    if set(factors) != wanted:
        return f"module {module} has {', '.join(sorted(factors))}, and needs {', '.join(sorted(wanted))}"
    down, up = factors["lora_A"].shape, factors["lora_B"].shape
    rank = _rank_of(module, config)
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or rank not in (None, down[0]):
        says = f"the rank that `r` says ({rank}; `rank_pattern` may say another)"
        return f"module {module} has factors of shapes {down} and {up}, not of {says}"
    magnitude = factors.get("lora_magnitude_vector")
    if magnitude is not None and magnitude.shape != (up[0],):
        return f"module {module} has magnitudes of shape {magnitude.shape}, and {up[0]} rows need one each"
    return None


def _rank_of(module: str, config: Mapping[str, Any]) -> int | None:
    """Returns the rank that the config gives a module, None where it gives none that can be used.

    Source: peft's ``get_pattern_key``: the first name in ``rank_pattern`` that a module's name ends in.
    """
    pattern = config.get("rank_pattern") or {}
    if not _ADAPTER_KEYS["rank_pattern"][0](pattern) or not _ADAPTER_KEYS["r"][0](config.get("r")):
        return None
    named = (rank for name, rank in pattern.items() if re.match(rf"(.*\.)?({name})$", module))
    return int(next(named, config["r"]))


def _base_fault(module: str, factors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> str | None:
    weight = base.get(f"{module}.weight")
    if weight is None:
        return f"it adapts {module}, and the base model has no such layer: name the right `base_model`"
    if weight.shape != (factors["lora_B"].shape[0], factors["lora_A"].shape[1]):
        return f"{module} is {weight.shape} in the base model, and the adapter was made for another shape"
    return None
