"""Running gptqmodel on a checkpoint: windows of tokens in, a packed checkpoint on disk out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.records import Checkpoint
from harness.tokenizer import load_tokenizer

DISTRIBUTION = "gptqmodel"

# Windows forwarded at once; it moves no result but by the order of sums.
_BATCH = 8

_ENVIRONMENT = {
    # With one worker its loader asks for two and fails.
    "GPTQMODEL_CPU_WORKERS": "2",
    # Its packer would be compiled on first use, which needs a compiler and most of a minute.
    "GPTQMODEL_DISABLE_PACK_EXT": "1",
}


@contextmanager
def _environment() -> Iterator[None]:
    """Sets what gptqmodel reads when it is imported and when it packs, and takes it back."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _alive(threads: Any) -> Iterator[None]:
    """Keeps gptqmodel from ending the whole process when one of its threads fails.

    The exception is in the thread's future by then, so it reaches the caller.
    """
    workers = [each for each in vars(threads).values() if isinstance(each, type) and "_abort_process" in vars(each)]
    before = [each.__dict__["_abort_process"] for each in workers]
    for each in workers:
        each._abort_process = lambda self, exc: None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for each, abort in zip(workers, before, strict=True):
            each._abort_process = abort  # type: ignore[attr-defined]


@contextmanager
def _logs_in(folder: Path, looper: Any) -> Iterator[None]:
    """Has gptqmodel write its logs below ``folder`` instead of the working directory; it has no setting for that."""
    before = looper._PROJECT_LOG_DIR
    looper._PROJECT_LOG_DIR = folder / "logs"
    try:
        yield
    finally:
        looper._PROJECT_LOG_DIR = before


def _staged(checkpoint: Checkpoint, folder: Path) -> str:
    """Returns ``folder`` with the checkpoint's weights and config linked and its tokenizer saved.

    gptqmodel loads a tokenizer from beside the weights, and an adapter merged
    into its base has none there. Nothing but weights and config is linked, so
    that nothing of the checkpoint can be written through a link.
    """
    for pattern in ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"):
        for path in Path(checkpoint.path).glob(pattern):
            (folder / path.name).symlink_to(path.resolve())
    load_tokenizer(checkpoint.tokenizer_path).save_pretrained(folder)
    return str(folder)


def run(
    checkpoint: Checkpoint,
    windows: Sequence[Sequence[int]],
    place: Path,
    *,
    dtype: str,
    config_of: Callable[[Any], Any],
    options: Callable[[Any], Mapping[str, Any]] = lambda library: {},
) -> None:
    """Has gptqmodel quantize the checkpoint and save it in ``place``.

    Args:
        checkpoint: The 16-bit model.
        windows: Token windows to calibrate on.
        place: Folder to save in.
        dtype: Floating dtype to load the model and compute activations in.
        config_of: Makes the library's config from its ``quantization.config``
            module.
        options: Further arguments of its ``quantize``, from the library.
    """
    import torch

    # Its last log lines may be written after the quantizing.
    with _environment(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as staging:
        import gptqmodel
        from gptqmodel.looper import loop_processor
        from gptqmodel.quantization import config as configs
        from gptqmodel.utils import threadx

        with _alive(threadx), _logs_in(Path(staging), loop_processor):
            model = gptqmodel.GPTQModel.load(
                _staged(checkpoint, Path(staging)),
                config_of(configs),
                dtype=getattr(torch, dtype),
                trust_remote_code=False,
            )
            model.quantize(
                [{"input_ids": list(window), "attention_mask": [1] * len(window)} for window in windows],
                batch_size=_BATCH,
                calibration_data_min_length=1,
                **options(gptqmodel),
            )
            model.save(str(place))
