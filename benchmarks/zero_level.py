"""How much of an update survives 4 bits when a level lies on 0 and when none has to.

Two roundings of one kind, min-max over groups of 64, differ in one thing: the
offset is a whole number of steps, so that small weights get exactly 0, or it
is the group's smallest weight. Usage: ``python -m benchmarks.zero_level
--submissions build/smol/submissions --target smol-target smol-full-bf16-s0 smol-full-float32-s0``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

STEPS, GROUP = 15, 64
LINEAR = "proj.weight"


def round_to_levels(weight: Any, *, level_on_zero: bool) -> Any:
    """Returns a float32 matrix [out, in] rounded to 16 levels for each group of 64 in a row."""
    group = weight.reshape(-1, GROUP)
    low, high = group.amin(1, keepdim=True), group.amax(1, keepdim=True)
    if level_on_zero:
        low, high = low.clamp(max=0), high.clamp(min=0)
    step = ((high - low) / STEPS).clamp(min=1e-12)
    if level_on_zero:
        low = (low / step).round() * step
    codes = ((group - low) / step).round().clamp(0, STEPS)
    return (codes * step + low).reshape(weight.shape)


def products(target: Any, entry: Any, *, level_on_zero: bool) -> tuple[float, float]:
    """Returns <dQ, dW> and <dW, dW> of one matrix; over all matrices their sums give the survival ratio."""
    update = entry - target
    left = round_to_levels(entry, level_on_zero=level_on_zero) - round_to_levels(target, level_on_zero=level_on_zero)
    return float((left * update).sum()), float((update * update).sum())


def main() -> None:
    """Prints the survival ratio of each entry over all linear layers, both ways."""
    from safetensors import safe_open

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("entries", nargs="+", help="names of full models")
    parser.add_argument("--target", required=True)
    parser.add_argument("--submissions", type=Path, default=Path("submissions"))
    arguments = parser.parse_args()
    weights = {
        name: safe_open(arguments.submissions / name / "weights" / "model.safetensors", "pt")
        for name in (arguments.target, *arguments.entries)
    }
    for name in arguments.entries:
        left, whole = {True: 0.0, False: 0.0}, 0.0
        for key in filter(lambda key: key.endswith(LINEAR), weights[name].keys()):
            target, entry = (weights[one].get_tensor(key).float() for one in (arguments.target, name))
            for level_on_zero in left:
                inner, square = products(target, entry, level_on_zero=level_on_zero)
                left[level_on_zero] += inner
            whole += square
        print(f"{name}: {left[True] / whole:.2f} with a level on 0, {left[False] / whole:.2f} without")


if __name__ == "__main__":
    main()
