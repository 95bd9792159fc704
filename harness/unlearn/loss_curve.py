"""The curve of a training run: its losses by step, as one picture and one line of JSON a step."""

from __future__ import annotations

import json
import math
from pathlib import Path

from harness.unlearn.trainer import TrainingLog

CURVE, LINES = "loss.svg", "training_log.jsonl"
_WIDTH, _HEIGHT, _EDGE = 720, 360, 56
_COLOURS = {"loss": "#222222", "forget": "#b3261e", "retain": "#1f5fa8"}


def write_curve(log: TrainingLog, folder: Path) -> None:
    """Writes ``loss.svg`` and ``training_log.jsonl``; a loss that is not finite leaves a gap and is null."""
    with (folder / LINES).open("w", encoding="utf-8") as file:
        for step in log.steps:
            parts = {name: value if math.isfinite(value) else None for name, value in step.losses.items()}
            file.write(json.dumps({"step": step.step, **parts, "learning_rate": step.learning_rate}) + "\n")
    (folder / CURVE).write_text(_picture(log), encoding="utf-8")


def _picture(log: TrainingLog) -> str:
    values = [value for step in log.steps for value in step.losses.values() if math.isfinite(value)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    span = (high - low) or 1.0

    def point(step: int, value: float) -> str:
        across = _EDGE + (_WIDTH - 2 * _EDGE) * (step - 1) / max(len(log.steps) - 1, 1)
        return f"{across:.1f},{_HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * (value - low) / span:.1f}"

    shapes = []
    for row, (name, colour) in enumerate(_COLOURS.items()):
        runs: list[list[str]] = [[]]
        for step in log.steps:
            value = step.losses.get(name, math.nan)
            if math.isfinite(value):
                runs[-1].append(point(step.step, value))
            else:
                runs.append([])
        lines = [f'<polyline fill="none" stroke="{colour}" points="{" ".join(run)}"/>' for run in runs if run]
        if lines:
            shapes += [*lines, f'<text x="{_WIDTH - _EDGE + 6}" y="{_EDGE + 16 * row}" fill="{colour}">{name}</text>']
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
            'font-size="12"><rect width="100%" height="100%" fill="#ffffff"/>',
            f'<text x="{_EDGE}" y="24">{log.recipe.method}, {log.recipe.parameters}: {len(log.steps)} steps</text>',
            f'<text x="4" y="{_EDGE}">{high:.4g}</text><text x="4" y="{_HEIGHT - _EDGE}">{low:.4g}</text>',
            f'<path d="M{_EDGE} {_EDGE}V{_HEIGHT - _EDGE}H{_WIDTH - _EDGE}" fill="none" stroke="#888888"/>',
            *shapes,
            "</svg>\n",
        ]
    )
