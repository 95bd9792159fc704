"""Models from their files: every tensor is there, has its place and is finite, or the model is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness import shards
from harness.errors import InputError

_MOST_NAMES = 5


def load(folder: Path, *, dtype: Any, **settings: Any) -> Any:
    """Returns the causal language model of a folder; each of its weights comes from the folder's files.

    Args:
        folder: Folder with config.json and safetensors files.
        dtype: torch dtype of the weights.
        **settings: More arguments of ``from_pretrained``.

    Raises:
        InputError: Tensors are missing, surplus or of another shape, or hold numbers that ``dtype`` can't.
    """
    from transformers import AutoModelForCausalLM

    if "quantization_config" in settings:
        # A library's packed layers have other shapes than the files.
        check(skeleton(folder), folder)
    refuse_adapter(folder)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True,
        output_loading_info=True, ignore_mismatched_sizes=True, **settings,
    )  # fmt: skip
    refuse(
        folder,
        missing=report["missing_keys"],
        surplus=[name for name in report["unexpected_keys"] if not shards.BUFFERS.fullmatch(name)],
        misshapen=[name for name, *_ in report["mismatched_keys"]],
    )
    if "quantization_config" not in settings:
        check(model, folder)
    if dtype.itemsize < 4:
        for name, tensor in model.named_parameters():
            refuse_infinite(name, tensor)
    return model


def skeleton(folder: Path) -> Any:
    """Returns the model that a folder's config.json describes, on the meta device: names and shapes, no numbers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)


def check(model: Any, folder: Path) -> None:
    """Compares a model with the tensors that its folder's files list.

    A tied head may be stored, or not; where it is, it must equal the embedding:
    libraries differ in which of the two they use. Stored buffers that the
    architecture computes itself are ignored.

    Args:
        model: A model of the folder's config, with weights or without.
        folder: The folder.

    Raises:
        InputError: Tensors are missing, surplus or of another shape, or a tied head has numbers of its own.
    """
    import torch

    refuse_adapter(folder)
    files = shards.stored_tensors(folder)
    names = stored_names(model, files)
    # With the buffers that a file must hold.
    own = model.state_dict()
    stored = {name: key for name, key in names.items() if name in own}
    twins = _twins(model)
    missing = [name for name in own if name not in stored and twins.get(name) not in stored]
    misshapen = [key for name, key in stored.items() if files[key].shape() != tuple(own[name].shape)]
    ignored = re.compile("|".join([f"^{shards.BUFFERS.pattern}$", *(model._keys_to_ignore_on_load_unexpected or ())]))
    surplus = [key for key in files if key not in stored.values() and not ignored.search(key)]
    refuse(folder, missing=missing, surplus=surplus, misshapen=misshapen)
    for name, twin in twins.items():
        if (
            name in stored
            and twin in stored
            and not torch.equal(files[stored[name]].read(), files[stored[twin]].read())
        ):
            raise InputError(
                f"{folder}: config.json ties {name} to {twin}, and the files hold different numbers for them: set "
                "tie_word_embeddings to false, or remove the one that is not used."
            )


def _twins(model: Any) -> dict[str, str]:
    """Returns the tied tensors by name, each with the other name of its numbers, as the config ties them."""
    ties = model.get_expanded_tied_weights_keys(all_submodels=True)
    return {**{source: target for target, source in ties.items()}, **ties}


def tensors(model: Any, folder: Path) -> dict[str, shards.StoredTensor]:
    """Returns the stored tensors of a folder by a model's own names, a tied tensor under each of its names."""
    files = shards.stored_tensors(folder)
    names = stored_names(model, files)
    names |= {name: names[twin] for name, twin in _twins(model).items() if name not in names and twin in names}
    return {name: files[key] for name, key in names.items()}


def stored_names(model: Any, files: Iterable[str]) -> dict[str, str]:
    """Returns a model's tensors with the names that files have for them, by the renaming rules of transformers."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    own = model.state_dict()
    return {rename_source_key(key, renamings, [], model.base_model_prefix, own)[0]: key for key in files}


def refuse(folder: Path, *, missing: Iterable[str], surplus: Iterable[str], misshapen: Iterable[str]) -> None:
    """Refuses a folder whose files and config don't fit together.

    Args:
        folder: The folder.
        missing: Tensors that the config describes and the files lack.
        surplus: Tensors of the files that the config does not describe.
        misshapen: Tensors of another shape than the config gives them.

    Raises:
        InputError: There is such a tensor; the sentence has up to five names of each kind.
    """
    lists = {"missing": missing, "surplus": surplus, "of another shape": misshapen}
    parts = [f"{what} {_listed(names)}" for what, tensors in lists.items() if (names := sorted(set(map(str, tensors))))]
    if parts:
        raise InputError(
            f"{folder}: the tensors in its files are not those of config.json ({'; '.join(parts)}): save the whole "
            "model again with save_pretrained."
        )


def refuse_adapter(folder: Path) -> None:
    """Refuses a full model with an adapter in its folder: transformers would attach the adapter without a word.

    Raises:
        InputError: The folder holds an adapter_config.json.
    """
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: it holds a full model and an adapter: keep one of the two.")


def refuse_infinite(name: str, tensor: Any) -> Any:
    """Returns a tensor whose numbers are all finite.

    Raises:
        InputError: One is not, as a number of a wider dtype that this one can't hold.
    """
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise InputError(f"Tensor {name} holds a number that {dtype} can't hold: use weights within its range.")
    return tensor


def save(model: Any, folder: Path, **settings: Any) -> None:
    """Writes a model as ``save_pretrained`` does, once every number is known to be finite.

    Raises:
        InputError: A weight is NaN or infinite.
    """
    for name, tensor in model.state_dict().items():
        refuse_infinite(name, tensor)
    model.save_pretrained(folder, **settings)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    return f"{shown} and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else shown
