"""Checks the rotary positions that a config.json asks for: another rope_type fails or is another model at load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.submit.scan.strict_model import Wrong, listed, shown

# Keys that each rope type must have beside it.
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "default": (), "linear": ("factor",), "dynamic": ("factor",), "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"), "longrope": ("short_factor", "long_factor"),
}  # fmt: skip
# transformers calls Phi-3's older names by the newer one.
_PHI_3 = {"default": "default", **dict.fromkeys(("longrope", "su", "yarn"), "longrope")}
_NUMBERS = frozenset({
    "rope_theta", "partial_rotary_factor", "factor", "low_freq_factor", "high_freq_factor", "attention_factor",
    "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
})  # fmt: skip
_LISTS = frozenset({"short_factor", "long_factor"})
_READ = _NUMBERS | _LISTS | {"rope_type", "type", "truncate"}
_LAYERS = {"full_attention", "sliding_attention"}


def faults(config: Mapping[str, Any], kind: str, notes: list[str]) -> Iterator[Wrong]:
    """Yields what transformers makes no rotary positions of, or others than are asked for.

    Args:
        config: A config whose fields have no fault by themselves.
        kind: Its model_type.
        notes: Takes a sentence for keys that are ignored.

    Source: ``modeling_rope_utils.py`` and ``convert_rope_params_to_dict`` of each architecture's config.
    """
    given = {key: config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key)}
    if len(given) == 2 and given["rope_parameters"] != given["rope_scaling"]:
        yield "`rope_parameters` and `rope_scaling` contradict each other: keep one", "rope_scaling", None
    for key, rope in given.items():
        by_layer = _LAYERS.issuperset(rope)
        if by_layer != (kind in ("gemma3_text", "olmo3") and key == "rope_parameters"):
            needed = "one mapping for all layers" if by_layer else f"a mapping for each of {', '.join(sorted(_LAYERS))}"
            yield f"`{key}` must be {needed} of a {kind} model", key, None
            continue
        for each in rope.values() if by_layer else [rope]:
            if each is not None:
                yield from _faults(key, each, config, kind)
                ignored = set(each) - _READ if isinstance(each, dict) else None
                if ignored:
                    notes.append(f"config.json: ignored, since no rope_type reads them in `{key}`: {listed(ignored)}.")


def _faults(key: str, rope: Any, config: Mapping[str, Any], kind: str) -> Iterator[Wrong]:
    names = [rope[name] for name in ("rope_type", "type") if name in rope] if isinstance(rope, dict) else [rope]
    own = _PHI_3 if kind == "phi3" else {name: name for name in _NEEDED}
    if any(name not in own for name in map(str, names)) or len(set(names)) > 1:
        told = " and ".join(map(shown, names))
        yield f"`{key}` is of rope_type {told}, and those of {kind} models are {', '.join(own)}", key, None
        return
    name = own[str(names[0])] if names else "default"
    if missing := [each for each in _NEEDED[name] if rope.get(each) is None]:
        yield f"`{key}` of rope_type {name} lacks {', '.join(missing)}", key, None
    for each in sorted(_NUMBERS.intersection(rope)):
        if rope[each] is not None and not _above_0(rope[each]):
            yield f"`{key}`'s {each} is {shown(rope[each])}, and a number above 0 is needed", key, None
            return
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    count = int(head * (rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1)) // 2
    for each in sorted(_LISTS.intersection(rope)) if name == "longrope" else ():
        value = rope[each]
        if not isinstance(value, list) or len(value) != count or not all(map(_above_0, value)):
            yield f"`{key}`'s {each} must hold {count} numbers above 0", key, None


def _above_0(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
