"""What GPTQ's quantizers are called, whichever library makes them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.quantize import calibration as texts
from harness.records import QuantizerSpec

_CHOICES = rf"-([8432])bit-(?:g([1-9]\d{{0,5}})|row)(-act)?(-sym)?{texts.NAME_ENDING}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqNames:
    """The names of one backend.

    Attributes:
        backend: Its name, which all of them begin with.
        label: What labels begin with.
    """

    backend: str
    label: str

    def spec(
        self, bits: int, group_size: int | None, *, symmetric: bool, reordered: bool = False, source: str = texts.RETAIN
    ) -> QuantizerSpec:
        """Returns the spec of these choices; ``reordered``: columns in the order of their activations."""
        groups = "row" if group_size is None else f"g{group_size}"
        told = "per row" if group_size is None else f"group {group_size}"
        ending = "" if source == texts.RETAIN else f"-calib-{source}"
        act, sym = "-act" if reordered else "", "-sym" if symmetric else ""
        return QuantizerSpec(
            name=f"{self.backend}-{bits}bit-{groups}{act}{sym}{ending}",
            backend=self.backend,
            bits=bits,
            group_size=group_size,
            symmetric=symmetric,
            label=f"{self.label} {bits}-bit, {told}, {'symmetric' if symmetric else 'asymmetric'}"
            + (", act-order" if reordered else "")
            + ("" if source == texts.RETAIN else f", calibrated on {source}"),
            options={"desc_act": reordered, **texts.options(source)},
        )

    def parse(self, name: str) -> QuantizerSpec | None:
        """Returns the spec of a full name, None where it is not one of this backend's."""
        told = re.fullmatch(self.backend + _CHOICES, name)
        if told is None:
            return None
        bits, group, reordered, symmetric, source = told.groups()
        return self.spec(
            int(bits),
            int(group) if group else None,
            symmetric=symmetric is not None,
            reordered=reordered is not None,
            source=source or texts.RETAIN,
        )
