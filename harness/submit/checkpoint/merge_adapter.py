"""A LoRA adapter merged into its base: float32 arithmetic, one rounding, written atomically.

Whole models where memory holds them, tensor by tensor elsewhere: the weights
are the same.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import memory, model_files, shards
from harness.errors import InputError, one_line

_ADAPTER = "default"


def merged_model(base: Path, adapter: Path) -> Any:
    """Returns the merged model in float32, before it is rounded.

    Raises:
        InputError: peft can't merge the adapter.
    """
    import torch

    model = model_files.load(base, dtype=torch.float32)
    with _merging(base, adapter):
        return _attached(model, adapter).merge_and_unload(safe_merge=True).eval()


def _attached(model: Any, adapter: Path) -> Any:
    """Returns peft's model of a float32 base and an adapter."""
    from peft import LoraConfig, PeftModel

    config = LoraConfig.from_pretrained(str(adapter))
    # Factors are overwritten by the file's; drawing them first would cost time and a random state.
    config.init_lora_weights = False
    config.inference_mode = True
    return PeftModel.from_pretrained(
        model, str(adapter), adapter_name=_ADAPTER, config=config, torch_device="cpu", low_cpu_mem_usage=False,
        local_files_only=True,
    )  # fmt: skip


@contextmanager
def _merging(base: Path, adapter: Path) -> Iterator[None]:
    """Says what is wrong with an adapter that peft can't merge."""
    try:
        yield
    except (ValueError, RuntimeError, KeyError) as error:
        problem = one_line(error)[:200]
        raise InputError(
            f"{adapter}: peft can't merge this adapter into {base} ({problem}): check that it was trained on that base."
        ) from error


def _adapted_layers(base: Path, adapter: Path) -> dict[str, Any]:
    """Returns peft's layers by module name; their factors are in memory, the base's weights are not."""
    import torch
    from peft.tuners.lora import LoraLayer
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # One number seen in every place: peft puts factors where the base is, and meta has no place for them.
            seen = torch.zeros(()).expand(parameter.shape)
            module.register_parameter(name, torch.nn.Parameter(seen, requires_grad=False))
    adapted = _attached(model, adapter)
    return {name: layer for name, layer in adapted.get_base_model().named_modules() if isinstance(layer, LoraLayer)}


def _merged_weight(layer: Any, weight: Any) -> Any:
    """Returns what peft makes of a layer's weight in the base; the layer is as it was afterwards."""
    import torch

    linear = layer.get_base_layer()
    placeholder = linear.weight
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    layer.merge(safe_merge=True, adapter_names=[_ADAPTER])
    merged = linear.weight.detach()
    linear.weight = placeholder
    layer.merged_adapters.clear()
    return merged


def merge_by_tensor(base: Path, adapter: Path, folder: Path, *, dtype: str) -> None:
    """Writes base plus adapter as one checkpoint of shards; the adapter and one shard are in memory.

    The weights are those of ``merged_model`` rounded: peft does each layer's
    arithmetic here, too.

    Args:
        base: Folder of the base model.
        adapter: Folder of the LoRA adapter.
        folder: Empty folder to fill.
        dtype: torch dtype that the merged weights are rounded to, once.

    Raises:
        InputError: peft can't merge the adapter.
    """
    with _merging(base, adapter):
        layers = _adapted_layers(base, adapter)

        def change(name: str, weight: Any) -> Any:
            layer = layers.get(name.removesuffix(".weight"))
            return weight if layer is None else _merged_weight(layer, weight)

        _rewrite(base, folder, dtype, change)


def _rewrite(source: Path, folder: Path, dtype: str, change: Callable[[str, Any], Any]) -> None:
    """Writes a checkpoint anew in another dtype, each float32 weight through ``change``."""
    import torch
    from transformers import AutoConfig

    rounded = getattr(torch, dtype)
    model_files.check(model_files.skeleton(source), source)
    config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    config.dtype = rounded
    config.save_pretrained(folder)
    with torch.no_grad(), shards.ShardWriter(folder) as out:
        for name, stored in shards.stored_tensors(source).items():
            tensor = stored.read()
            changed = change(name, tensor.float()).to(rounded) if tensor.is_floating_point() else tensor
            out.put(name, model_files.refuse_infinite(name, changed))


def write_rounded(source: Path, folder: Path, dtype: str) -> None:
    """Writes a checkpoint into an empty folder with each weight rounded once to ``dtype``."""
    import torch

    rounded = getattr(torch, dtype)
    if memory.must_stream(shards.count_numbers(source) * rounded.itemsize, f"rounding {source.name}"):
        return _rewrite(source, folder, dtype, lambda name, weight: weight)
    model_files.save(model_files.load(source, dtype=rounded), folder)


def merge(base: Path, adapter: Path, destination: Path, *, dtype: str) -> Path:
    """Writes base plus adapter as one checkpoint, unless it is there, and returns its folder.

    Args:
        base: Folder of the base model.
        adapter: Folder of the LoRA adapter.
        destination: Folder to make, named by the digest of both.
        dtype: torch dtype that the merged weights are rounded to, once.

    Raises:
        InputError: peft can't merge the adapter.
    """

    def write(folder: Path) -> None:
        import torch

        if memory.must_stream(shards.count_numbers(base) * torch.float32.itemsize, f"merging {adapter.name}"):
            return merge_by_tensor(base, adapter, folder, dtype=dtype)
        model_files.save(merged_model(base, adapter).to(getattr(torch, dtype)), folder)

    return write_once(destination, write)


def write_once(destination: Path, write: Callable[[Path], object]) -> Path:
    """Has a folder written, unless it is there, and returns it.

    It appears complete or not at all, so workers may race for it.

    Args:
        destination: Folder to make; its name must tell all that it is made of.
        write: Fills an empty folder, which becomes ``destination``.
    """
    if destination.is_dir():
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=destination.parent))
    try:
        write(scratch)
        try:
            scratch.rename(destination)
        except OSError:
            # Another worker was first; what it wrote has the same inputs.
            if not destination.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return destination
