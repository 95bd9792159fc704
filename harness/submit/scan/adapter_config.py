"""Checks an adapter: its config, its factors, and both against the base that the manifest names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.errors import UnsafeSubmissionError
from harness.submit.scan.adapter_fields import AdapterConfig, fault, read_adapter
from harness.submit.scan.adapter_modules import factor_faults
from harness.submit.scan.safetensors import Tensor
from harness.submit.weight_files import HUB, names_hub


def check_adapter(
    path: Path,
    tensors: Mapping[str, Tensor],
    base: Mapping[str, Tensor] | None,
    base_on_hub: str | None = None,
    notes: list[str] | None = None,
) -> AdapterConfig:
    """Checks an adapter_config.json, and the factors against it and the base; returns the config.

    Args:
        path: The config.
        tensors: The adapter's own.
        base: The base model's, None where they are not here yet.
        base_on_hub: ``hf://owner/name`` of the base that the manifest names,
            None where it lies here: names of local folders tell nothing.
        notes: Gets a sentence for each field that is ignored.

    Raises:
        UnsafeSubmissionError: Another kind of adapter than plain, rank-stabilized or weight-decomposed
            LoRA, another base than the manifest's, limits passed, or other
            factors than those that the config describes on the base.
    """
    config, faults, ignored = read_adapter(path)
    if notes is not None:
        notes += ignored
    if config is not None:
        wrong = [*_base_name_faults(config, base_on_hub), *_bias_faults(config, tensors, base)]
        faults += [fault(path, *each) for each in wrong]
        faults += [fault(path, each) for each in factor_faults(config, tensors, base)]
    if config is None or faults:
        raise UnsafeSubmissionError(*faults)
    return config


def _base_name_faults(config: AdapterConfig, base_on_hub: str | None) -> Iterator[tuple[str, str, str]]:
    says, key = config.base_model_name_or_path, "base_model_name_or_path"
    if base_on_hub is None or says is None or not names_hub(says):
        return
    named = base_on_hub.removeprefix(HUB)
    # The hub takes names in any case.
    if says.casefold() != named.casefold():
        yield f"`{key}` is {says!r}, and `base_model` in submission.yaml leads to {named!r}: correct either", key, named


def _bias_faults(
    config: AdapterConfig, tensors: Mapping[str, Tensor], base: Mapping[str, Tensor] | None
) -> Iterator[tuple[str, str, str]]:
    biased = next((name for name in (*tensors, *(base or ())) if name.endswith(".bias")), None)
    if config.bias not in ("none", None) and biased is not None:
        what = "trained biases can't be merged exactly here: submit the merged full_model"
        yield f"`bias` is {config.bias!r}, and there is {biased}: {what}", "bias", "none"
