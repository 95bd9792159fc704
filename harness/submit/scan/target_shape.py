"""Whether an entry is a model of its target's shape: else nothing of it can be compared with its target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import InputError, UnsafeSubmissionError
from harness.records import Submission
from harness.submit.scan.model_config import read_config
from harness.submit.weight_files import HUB

# Not the vocabulary: it is padded by some trainers, and the target's tokenizer is what scores.
_SHAPE = ("model_type", "hidden_size", "n_embd", "num_hidden_layers", "n_layer", "intermediate_size", "n_inner",
          "num_attention_heads", "n_head", "num_key_value_heads", "head_dim")  # fmt: skip


def check(submission: Submission, submissions: Mapping[str, Submission]) -> None:
    """Compares the config of an entry's model, or of its adapter's base, with that of its target.

    What lies on a hub, has no config here or can't be read is left to the scan.

    Raises:
        InputError: Both state a size or an architecture, and not the same.
    """
    target = submissions.get(submission.target or "")
    mine, other = _config(submission, submissions), _config(target, submissions)
    for key in _SHAPE:
        if None not in (mine.get(key), other.get(key)) and mine[key] != other[key]:
            raise InputError(
                f"{submission.name}: its model has {key} {str(mine[key])[:40]!r} and its target {submission.target} "
                f"{str(other[key])[:40]!r}: name the target that it was unlearned from."
            )


def _config(submission: Submission | None, submissions: Mapping[str, Submission]) -> Mapping[str, Any]:
    if submission is not None and submission.kind == "lora_adapter":
        submission = submissions.get(submission.base_model or "")
    if submission is None or submission.weights.startswith(HUB):
        return {}
    path = Path(submission.weights) / "config.json"
    try:
        return read_config(path) if path.is_file() else {}
    except UnsafeSubmissionError:
        return {}
