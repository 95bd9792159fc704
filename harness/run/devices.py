"""The graphics cards that ``--device`` means, found without torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

from harness.errors import InputError

_DEVICE = re.compile(r"cpu|mps|cuda(:\d+)?")


def kind_of(device: str) -> str:
    """Returns what jobs are planned for: the part before the colon.

    Raises:
        InputError: It names no device.
    """
    names = [name.strip() for name in device.split(",")]
    kinds = {name.split(":")[0] for name in names}
    if not all(_DEVICE.fullmatch(name) for name in names) or len(kinds) > 1 or (len(names) > 1 and kinds != {"cuda"}):
        raise InputError(
            f"--device {device!r} is no device: give cpu, mps, cuda, cuda:1, or a list such as cuda:0,cuda:1."
        )
    return kinds.pop()


def cards(device: str, *, nodes: Path = Path("/dev")) -> tuple[str, ...]:
    """Returns the GPUs to share out, as CUDA_VISIBLE_DEVICES names them; none where it is no matter of cards.

    Args:
        device: ``cpu``, ``cuda`` for every card that is visible, ``cuda:1``, or several with commas.
        nodes: Where the system lists its devices.

    Raises:
        InputError: A card is named that this machine does not show.
    """
    if kind_of(device) != "cuda":
        return ()
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        visible = [name.strip() for name in told.split(",") if name.strip()]
    else:
        numbers = (re.fullmatch(r"nvidia(\d+)", path.name) for path in nodes.glob("nvidia*"))
        # CUDA counts the cards that it sees from 0, whatever numbers their nodes have.
        visible = [str(number) for number in range(sum(found is not None for found in numbers))]
    wanted = [name.strip().partition(":")[2] for name in device.split(",")]
    if wanted == [""]:
        return tuple(visible)
    asked = [int(number or 0) for number in dict.fromkeys(wanted)]
    if visible and max(asked) >= len(visible):
        raise InputError(f"There is no cuda:{max(asked)}: this machine shows {len(visible)} cards, cuda:0 onwards.")
    return tuple(visible[number] for number in asked) if visible else ()
