"""Which quantization libraries and graphics cards are installed; asking imports no library."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib import metadata

EXTRA_OF = {
    **dict.fromkeys(
        (
            "torch", "transformers", "peft", "lm_eval", "accelerate", "datasets", "safetensors", "tokenizers",
            "rouge_score", "sklearn", "bitsandbytes", "psutil", "huggingface_hub",
        ),
        "score",
    ),
    **dict.fromkeys(("gptqmodel", "hqq", "optimum", "torchao", "gguf", "auto_round"), "quantizers"),
    "ray": "ray",
}  # fmt: skip
"""The extra of this distribution that brings a module."""


def version_of(distribution: str) -> str | None:
    """Returns the version of an installed distribution, None where it is absent.

    Not cached: a library may be installed while a program runs, and tests
    take some away.
    """
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def install_line(extra: str) -> str:
    """Returns the command that installs an extra of this distribution."""
    return f"pip install 'quench-bench[{extra}]'"


def absent_module(error: ModuleNotFoundError) -> str | None:
    """Returns one sentence about a module that an extra would bring; None where none would: the code is at fault."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRA_OF:
        return None
    return f"This needs {module}, which is not installed here: run {install_line(EXTRA_OF[module])}."


def missing_reason(spec_name: str, distributions: Sequence[str], *, extra: str = "quantizers") -> str | None:
    """Returns one sentence that says what ``spec_name`` lacks and how to get it; None where all is there.

    Args:
        spec_name: Full name of the preset.
        distributions: What it needs, as the package index names them.
        extra: The extra of this distribution that brings them.
    """
    missing = [name for name in distributions if version_of(name) is None]
    if not missing:
        return None
    return f"{spec_name} needs {' and '.join(missing)}, not installed here: run {install_line(extra)}."


def scoring_reason(spec_name: str) -> str | None:
    """Returns why nothing can be scored under a backend that is here: ``[quantizers]`` alone brings no metrics."""
    return missing_reason(spec_name, ("transformers", "peft", "lm_eval", "rouge-score", "scikit-learn"), extra="score")


def cuda_devices() -> int:
    """Returns how many CUDA cards the driver offers to this process; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def gpu_reason(device: str) -> str | None:
    """Returns one sentence why there is no such CUDA device here; None where there is, or none is asked for."""
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return None
    found = cuda_devices()
    if found > (int(index) if index.isdigit() else 0):
        return None
    return f"There is no device {device!r} here (CUDA cards found: {found}): use --device cpu or another machine."
