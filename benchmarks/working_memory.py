"""How much memory scoring takes at its peak, beside the weights.

Two measures. *Process*: resident memory of a fresh process at its peak while it
scores, over what it held with the weights loaded; this is what a machine must
have. *Tensors*: the most bytes that torch's allocator held at once for the
longest text, over the weights' bytes; this is what a [tokens, vocabulary] table
in float32 would ruin.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

METRICS = ("verbmem_f", "knowmem_f", "knowmem_r", "privleak")


def weight_bytes(model: Any) -> int:
    """Returns the bytes of a model's parameters and buffers, shared ones once."""
    tensors = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in model.state_dict().values()}
    return sum(tensors.values())


def peak_bytes(work: Callable[[], object]) -> int:
    """Returns the most bytes that ``work`` held at once of what it allocated itself.

    On CUDA the allocator counts; on a CPU torch's profiler reports every
    allocation and release.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return int(torch.cuda.max_memory_allocated() - before)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = most = 0
    for _, size in changes:
        held += size
        most = max(most, held)
    return most


def of_scoring(folder: Path, corpus: str, data_dir: Path | None, count: int) -> dict[str, float]:
    """Returns the figures of one model, measured in a process of its own.

    Args:
        folder: The model, with its tokenizer.
        corpus: Whose four tasks are scored.
        data_dir: The corpus's folder in MUSE's local form, None for the default.
        count: Documents of each task.

    Returns:
        ``weights``, ``loaded`` and ``peak`` in bytes; ``process`` and
        ``tensors`` as shares (0.25 = a quarter more); ``tokens`` of the longest text.
    """
    arguments = [str(folder), corpus, str(data_dir or ""), str(count)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.working_memory", *arguments], check=True, capture_output=True, text=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def high_water() -> int:
    """Returns the most resident bytes of this process.

    Not ``ru_maxrss``: after a fork that also counts what the parent held.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (found,) = (line for line in lines if line.startswith("VmHWM"))
    return int(found.split()[1]) * 1024


def _measure(folder: str, corpus: str, data_dir: str, count: str) -> dict[str, float]:
    from types import SimpleNamespace

    import psutil
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.contenders import Quench, documents
    from harness.score.model.language_model import QuenchLM

    data = Path(data_dir) if data_dir else None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = {metric: documents(corpus, metric, tokenizer, data, int(count)) for metric in METRICS}
    quench = Quench(model, tokenizer, data)
    # One document of each first: imports and buffers that torch keeps are not what a document costs.
    for metric in METRICS:
        quench.run(metric, documents(corpus, metric, tokenizer, data, 1))
    loaded = psutil.Process().memory_info().rss
    for metric in METRICS:
        quench.run(metric, asked[metric])
    peak = high_water()
    longest = max((text for _, texts in asked["privleak"].splits for text in texts), key=len)
    lm = QuenchLM(model, tokenizer)
    request = [SimpleNamespace(args=(longest,))]
    lm.token_logprobs(request)
    tensors = peak_bytes(lambda: lm.token_logprobs(request))
    weights = weight_bytes(model)
    return {
        "weights": weights, "loaded": loaded, "peak": peak, "process": peak / loaded - 1, "tensors": tensors / weights,
        "tokens": len(tokenizer(longest)["input_ids"]),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(_measure(*sys.argv[1:])))
