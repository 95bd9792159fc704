"""Dense models and adapters on disk: load a base, add an adapter, write the result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import model_files
from harness.errors import InputError, QuantizationError
from harness.quantize.models.dense import block_linears

_GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@contextmanager
def _no_bars() -> Iterator[None]:
    """Silences transformers' bars for loading and writing: the steps are the progress that a user waits for."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def existing_folder(path: Path, what: str) -> Path:
    """Returns ``path``.

    Raises:
        InputError: It is no folder.
    """
    if not path.is_dir():
        raise InputError(f"There is no {what} folder {path}: give the folder of a dense transformers model.")
    return path


def load_dense(base: Path, device: str) -> tuple[Any, Any]:
    """Returns the model in float32 on the device, and the 16-bit type to store it in (its own, else bfloat16).

    Raises:
        InputError: The folder holds no model that loads from safetensors, or
            one that generates nothing.
    """
    import torch
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(existing_folder(base, "base model"), trust_remote_code=False)
        refuse_encoders(config)
        with _no_bars():
            model = model_files.load(base, config=config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"The base model in {base} can't be loaded: {str(error).splitlines()[0]}") from error
    model.config.use_cache = False
    stored = config.dtype if config.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
    return model.to(device), stored


def refuse_encoders(config: Any) -> None:
    """Checks that a model generates text, which every measure of forgetting here asks it to do.

    Raises:
        InputError: By its config it is an encoder only.
    """
    named = list(config.architectures or ())
    if named and not any(name.endswith(_GENERATES) for name in named):
        raise InputError(
            f"{named[0]} generates no text, which VerbMem and KnowMem are measured on: "
            "use a causal language model (its config's architectures name one that ends in ForCausalLM)."
        )


def with_adapters(model: Any, *, rank: int, alpha: float, dropout: float, seed: int) -> Any:
    """Returns a peft model with fresh LoRA adapters on all linear modules of every block.

    In a Llama-like model these are seven; GPT-NeoX has four. They are the
    modules that get quantized.

    Raises:
        InputError: The model has no blocks with linear modules.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    try:
        names = {name.rsplit(".", 1)[-1] for name in block_linears(model)}
    except QuantizationError as error:
        raise InputError(f"LoRA finds nothing to adapt: {error}") from error
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=sorted(names),
        bias="none",
        task_type="CAUSAL_LM",
    )
    # peft draws the adapters from the global generator: draw them from the seed, and leave it as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def write_model(model: Any, tokenizer: Any, out: Path) -> None:
    """Writes a full model in the type it has, as one safetensors file, with its tokenizer."""
    model.config.use_cache = True
    with _no_bars():
        model_files.save(model, out, max_shard_size="100GB")
    tokenizer.save_pretrained(out)
    _open_to_readers(out)


def _open_to_readers(folder: Path) -> None:
    # safetensors writes files that their owner alone may read.
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)


def write_adapter(model: Any, out: Path, base_name: str) -> None:
    """Writes a peft adapter: its safetensors and its config, with the same bytes for the same adapter.

    ``base_name`` is what the config calls the base: never a path of this machine.
    """
    model.peft_config["default"].base_model_name_or_path = base_name
    model.save_pretrained(out, safe_serialization=True, save_embedding_layers=False)
    # peft's model card is a form to fill in, and its config lists a set in hash order.
    (out / "README.md").unlink(missing_ok=True)
    path = out / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _open_to_readers(out)
