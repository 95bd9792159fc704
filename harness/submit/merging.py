"""A LoRA adapter merged into its base: float32 arithmetic, one rounding, written atomically."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.errors import InputError


def merged_model(base: Path, adapter: Path) -> Any:
    """Returns the merged model in float32, before it is rounded.

    Raises:
        InputError: peft can't merge the adapter.
    """
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    config = LoraConfig.from_pretrained(str(adapter))
    # Factors are overwritten by the file's; drawing them first would cost time and a random state.
    config.init_lora_weights = False
    config.inference_mode = True
    try:
        adapted = PeftModel.from_pretrained(
            model, str(adapter), config=config, torch_device="cpu", low_cpu_mem_usage=False, local_files_only=True
        )
        return adapted.merge_and_unload(safe_merge=True).eval()
    except (ValueError, RuntimeError, KeyError) as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(
            f"{adapter}: peft can't merge this adapter into {base} ({problem}): check that it was trained on that base."
        ) from error


def rounded_model(folder: Path, dtype: str) -> Any:
    """Returns a model loaded in ``dtype``: each weight rounded once."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False, use_safetensors=True
    )


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

        merged_model(base, adapter).to(getattr(torch, dtype)).save_pretrained(folder)

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
