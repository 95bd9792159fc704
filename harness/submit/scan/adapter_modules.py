"""Which layers of a base an adapter's config describes, and whether its file holds exactly their factors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from harness.errors import UnsafeSubmissionError
from harness.submit.scan.adapter_fields import AdapterConfig
from harness.submit.scan.model_config import read_config
from harness.submit.scan.name_patterns import ENDING, PLACE, SECONDS, Matcher
from harness.submit.scan.safetensors import Tensor, same_numbers

HEAD = "lm_head"
HEADS = (f"{HEAD}.weight", "embed_out.weight")
"""What files call the weight of the output head, which the library calls ``lm_head`` in every architecture."""

_EMBEDDING = re.compile(r"(?:.*\.)?(?:embed_tokens|embed_in)")
# Architectures whose config.json need not say that head and embedding are one.
TIED_UNLESS_SAID = (
    "cohere", "cohere2", "ernie4_5", "gemma", "gemma2", "gemma3_text", "smollm3", "starcoder2", "vaultgemma",
)  # fmt: skip

_FACTOR = re.compile(
    r"base_model\.model\.(.+)\.(lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
)
_COPY = re.compile(r"base_model\.model\.(.+?)(?:\.base_layer)?\.weight")
_NAMED = 5
_TOLD = 20


@dataclass(frozen=True, slots=True)
class Layer:
    """What an adapter's config says about one layer.

    Attributes:
        rank: Rank of its factors.
        alpha: Their scale times the rank, or times its root.
        embedding: Whether the layer is the embedding of tokens.
    """

    rank: int
    alpha: float
    embedding: bool


def module_of(tensor: str) -> str:
    """Returns the name of the module whose weight a file's tensor is."""
    return HEAD if tensor in HEADS else tensor.removesuffix(".weight")


def is_factor(name: str) -> bool:
    """Returns whether a tensor of an adapter's file is one of its factors or magnitudes, by its name."""
    return _FACTOR.fullmatch(name) is not None


def head_of(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Returns the output head that a model's file stores, if any."""
    return next((tensors[name] for name in HEADS if name in tensors), None)


def is_tied(base: Mapping[str, Tensor]) -> bool:
    """Returns whether a model's head is its embedding: its config says so, or its file stores no head."""
    file = next((tensor.file for tensor in base.values() if tensor.file), None)
    config = read_config(file.parent / "config.json") if file and (file.parent / "config.json").is_file() else {}
    says = config.get("tie_word_embeddings", config.get("model_type") in TIED_UNLESS_SAID)
    return head_of(base) is None or says is True


def tied_head_fault(base: Mapping[str, Tensor]) -> str | None:
    """Returns what is wrong with a stored head that must be the embedding and is not, None where nothing is."""
    embedding = next((tensor for name, tensor in base.items() if _EMBEDDING.fullmatch(module_of(name))), None)
    head = head_of(base)
    if head is None or embedding is None or not is_tied(base) or same_numbers(head, embedding):
        return None
    return (
        "config.json ties lm_head to the embedding, and the file of the model stores another lm_head, so the model "
        "depends on the program that loads it: set `tie_word_embeddings` to false, or remove lm_head"
    )


def described(config: AdapterConfig, base: Mapping[str, Tensor]) -> dict[str, Layer]:
    """Returns the layers of a base that a config adapts, as peft would choose them, by module name.

    Args:
        config: The adapter's.
        base: Tensors of the base model.

    Raises:
        TimeoutError: A pattern takes too long.
        ValueError: It reaches a module that has no matrix.

    Source: peft 0.21, ``check_target_module_exists``, ``_maybe_include_all_linear_layers``, ``get_pattern_key``.
    """
    matrices = {module_of(name) for name, tensor in base.items()
                if name.endswith(".weight") and len(tensor.shape) == 2} | {HEAD}  # fmt: skip
    matcher = Matcher()
    if isinstance(config.target_modules, str) and config.target_modules.lower() == "all-linear":
        names = {name for name in matrices if name != HEAD and not _EMBEDDING.fullmatch(name)}
        chosen = {name for name in names if not _is_named(name, config.exclude_modules or [], matcher)}
    else:
        owners = [module_of(name) if name.endswith(".weight") else name.rpartition(".")[0] for name in base]
        paths = {owner[:end] for owner in owners for end in (*(dot.start() for dot in re.finditer(r"\.", owner)), None)}
        chosen = {name for name in sorted((matrices | paths) - {""}) if _is_target(name, config, matcher)}
    if wrong := sorted(chosen - matrices):
        raise ValueError(f"`target_modules` reaches {wrong[0]}, which is no linear or embedding layer: name such alone")
    return {name: layer(name, config, matcher) for name in sorted(chosen)}


def layer(name: str, config: AdapterConfig, matcher: Matcher) -> Layer:
    """Returns what a config says about one layer, without asking whether it adapts it."""

    def of(patterns: Mapping[str, float] | None, otherwise: float) -> float:
        fits = (value for key, value in (patterns or {}).items() if matcher.match(key, name, frame=ENDING))
        return next(fits, otherwise)

    return Layer(
        rank=int(of(config.rank_pattern, config.r)), alpha=of(config.alpha_pattern, config.lora_alpha),
        embedding=_EMBEDDING.fullmatch(name) is not None,
    )  # fmt: skip


def _is_named(name: str, names: list[str] | str, matcher: Matcher) -> bool:
    """Returns whether a module is one of a list, by its last parts, or fits a regular expression."""
    if isinstance(names, str):
        return names != "" and matcher.match(names, name, full=True) is not None
    return any(name == ending or name.endswith(f".{ending}") for ending in names)


def _is_target(name: str, config: AdapterConfig, matcher: Matcher) -> bool:
    """Returns whether peft would adapt a module, were it of a kind that can be."""
    target, numbers = config.target_modules, config.layers_to_transform
    if _is_named(name, config.exclude_modules or [], matcher) or not _is_named(name, target, matcher):
        return False
    if isinstance(target, str) or name in target or numbers is None or numbers == []:
        return True
    patterns = config.layers_pattern or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if place := matcher.match(pattern, name, frame=PLACE):
            return int(place["idx"]) in ([numbers] if isinstance(numbers, int) else numbers)
    return False


def by_module(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Returns an adapter's tensors as factors by module and short name, and what else its file holds by tensor name."""
    modules: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        factor = _FACTOR.fullmatch(name)
        if factor is None or factor[2] in modules.get(factor[1], {}):
            others[name] = tensor
        else:
            modules.setdefault(factor[1], {})[factor[2]] = tensor
    return modules, others


def factor_faults(
    config: AdapterConfig, tensors: Mapping[str, Tensor], base: Mapping[str, Tensor] | None
) -> Iterator[str]:
    """Yields where an adapter's tensors are not exactly the factors that its config describes.

    Args:
        config: The adapter's.
        tensors: What its file holds.
        base: Tensors of the base model, None where they are not here yet.
    """
    modules, others = by_module(tensors)
    weights = {module_of(name): tensor for name, tensor in (base or {}).items() if name.endswith(".weight")}
    strange = [name for name, tensor in others.items() if not _is_copy(name, tensor, weights, base is not None)]
    yield from _short(
        f"tensor {name!r} is neither a factor of LoRA nor a copy of a weight of the base: merge the adapter with the "
        "program that made it and submit a full_model"
        for name in strange
    )
    try:
        matcher = Matcher()
        yield from _short(
            wrong for module, factors in modules.items()
            if (wrong := _shape_fault(module, factors, layer(module, config, matcher), config, weights))
        )  # fmt: skip
        if base is not None:
            yield from _set_faults(config, modules, base, weights)
    except TimeoutError:
        yield f"its patterns take more than {SECONDS:.0f} seconds over the names of layers: list the layers by name"
    except (ValueError, UnsafeSubmissionError) as refused:
        yield str(refused)


def _short(faults: Iterator[str]) -> Iterator[str]:
    told = list(faults)
    yield from told[:_TOLD]
    if len(told) > _TOLD:
        yield f"{len(told) - _TOLD} more of its tensors and modules have faults like these"


def _is_copy(name: str, tensor: Tensor, weights: Mapping[str, Tensor], base_is_here: bool) -> bool:
    """Returns whether a tensor is what peft stores of embeddings and heads beside their factors: the base's own."""
    copied = _COPY.fullmatch(name)
    if copied is None or copied[1].rsplit(".", 1)[-1] not in (HEAD, "embed_tokens", "embed_in"):
        return False
    # A tied head has no tensor of its own.
    embedding = next((weight for module, weight in weights.items() if _EMBEDDING.fullmatch(module)), None)
    weight = weights.get(copied[1], embedding if copied[1] == HEAD else None)
    return not base_is_here or (weight is not None and same_numbers(tensor, weight))


def _shape_fault(
    module: str, factors: Mapping[str, Tensor], says: Layer, config: AdapterConfig, weights: Mapping[str, Tensor]
) -> str | None:
    kind = "lora_embedding_" if any(name.startswith("lora_embedding_") for name in factors) else "lora_"
    wanted = {f"{kind}A", f"{kind}B", *(["lora_magnitude_vector"] if config.use_dora else [])}
    if set(factors) != wanted:
        return f"module {module} has {', '.join(sorted(factors))}, and needs {', '.join(sorted(wanted))}"
    down, up = factors[f"{kind}A"].shape, factors[f"{kind}B"].shape
    if len(down) != 2 or len(up) != 2 or not down[0] == up[1] == says.rank:
        rank = f"the rank that `r` says ({says.rank}; `rank_pattern` may say another)"
        return f"module {module} has factors of shapes {down} and {up}, not of {rank}"
    magnitude = factors.get("lora_magnitude_vector")
    if magnitude is not None and magnitude.shape != (up[0],):
        return f"module {module} has magnitudes of shape {magnitude.shape}, and {up[0]} rows need one each"
    weight = weights.get(module)
    if weight is None:
        return None
    if says.embedding != (kind != "lora_"):
        return f"module {module} has {', '.join(sorted(factors))}, which are factors of another kind of layer"
    if weight.shape != ((down[1], up[0]) if says.embedding else (up[0], down[1])):
        return f"{module} is {weight.shape} in the base model, and the adapter was made for another shape"
    return None


def _names(modules: set[str]) -> str:
    told = ", ".join(sorted(modules)[:_NAMED])
    more = len(modules) - _NAMED
    return f"{told}{f' and {more} more' if more > 0 else ''}" if modules else "none"


def _set_faults(
    config: AdapterConfig, modules: Mapping[str, object], base: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> Iterator[str]:
    wanted, stored = set(described(config, base)), set(modules)
    touched = sorted(name for name in wanted | stored if name == HEAD or _EMBEDDING.fullmatch(name))
    if touched and is_tied(base):
        yield (
            f"it adapts {touched[0]}, and in this base head and embedding are one matrix, of which peft's merge "
            "changes both uses and its forward pass one: train without that layer, or on a base that does not tie them"
        )
        return
    if wrong := tied_head_fault(base):
        yield wrong
    if not wanted | stored:
        yield "it adapts no layer: name some in `target_modules`"
    absent = {name for name in stored - wanted if name not in weights}
    if absent:
        yield f"it adapts {_names(absent)}, and the base model has no such layer: name the right `base_model`"
    elif wanted != stored:
        yield (
            "its file must hold the factors of exactly those layers that `target_modules` and its companions describe: "
            f"missing are {_names(wanted - stored)}; surplus are {_names(stored - wanted)}: save config and factors "
            "together from the trained model, or correct the config"
        )
