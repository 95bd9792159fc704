"""Keys and values of a batch whose rows grow by different amounts, in memory reserved once.

A token's keys and values stand at its position, in every row: nothing is
copied when a row grows, and what a rejected draft has left behind is
overwritten by the next token at that place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

Prefix = Sequence[tuple[Any, Any]]
"""Keys and values of tokens that rows have in common, by layer, each [1, heads, tokens, width]."""


def plain_cache(prefix: Prefix | None = None, rows: int = 1) -> Any:
    """Returns a cache of transformers that keeps every token, its rows beginning with ``prefix``."""
    from transformers.cache_utils import Cache, DynamicLayer

    made = Cache(layer_class_to_replicate=DynamicLayer)
    for index, (keys, values) in enumerate(prefix or ()):
        made.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), index)
    return made


def contents(found: Any) -> list[tuple[Any, Any]]:
    """Returns keys and values of every layer, each [rows, heads, tokens, width]."""
    return [(layer.keys, layer.values) for layer in found.layers]


@dataclass(slots=True)
class _Places:
    """Where the tokens of the next pass stand: rows [rows, 1] and positions [rows, width], none beyond ``end``."""

    count: int
    capacity: int
    rows: Any = None
    positions: Any = None
    end: int = 0


@cache
def _row_layer() -> Any:
    from transformers.cache_utils import DynamicLayer

    class RowLayer(DynamicLayer):  # type: ignore[misc]
        """A layer of transformers' cache that writes where its ``_Places`` say."""

        def __init__(self, places: _Places) -> None:
            super().__init__()
            self._places = places
            self.rooms: tuple[Any, ...] = ()

        def reserve(self, *like: Any) -> None:
            """Makes room for keys and values like these, for all rows and tokens."""
            rows, tokens = self._places.count, self._places.capacity
            # Zeros: masked places count 0 times what lies there, and that may be NaN in fresh memory.
            self.rooms = tuple(part.new_zeros((rows, part.shape[1], tokens, part.shape[3])) for part in like)

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            if not self.rooms:
                self.reserve(key_states, value_states)
            for room, states in zip(self.rooms, (key_states, value_states), strict=True):
                room[self._places.rows, :, self._places.positions] = states.transpose(1, 2)
            keys, values = (room[:, :, : self._places.end] for room in self.rooms)
            return keys, values

    return RowLayer


class RowCache:
    """Room for the keys and values of some rows.

    Args:
        rows: Rows of the batch.
        capacity: Most tokens that a row will ever have, rejected ones included.

    Attributes:
        cache: What the model takes as its cache; call ``place`` before each pass.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        from transformers.cache_utils import Cache

        self._places = _Places(count=rows, capacity=capacity)
        self.cache = Cache(layer_class_to_replicate=partial(_row_layer(), self._places))

    def fill(self, rows: slice, found: Any) -> None:
        """Copies what a plain cache holds of some rows, from their first token on."""
        for index, parts in enumerate(contents(found)):
            if index == len(self.cache.layers):
                self.cache.layers.append(self.cache.layer_class_to_replicate())
                self.cache.layers[index].reserve(*parts)
            for room, part in zip(self.cache.layers[index].rooms, parts, strict=True):
                room[rows, :, : part.shape[2]] = part

    def place(self, positions: Any) -> Any:
        """Says where the next pass's tokens stand, [rows, width]; returns the mask [rows, 1, width, tokens] for it."""
        import torch

        places = self._places
        places.rows = torch.arange(len(positions), device=positions.device)[:, None]
        places.positions, places.end = positions, int(positions.max()) + 1
        return torch.arange(places.end, device=positions.device) <= positions[:, None, :, None]

    def keep(self, rows: Any) -> None:
        """Drops all rows but those."""
        for layer in self.cache.layers:
            layer.rooms = tuple(room[rows] for room in layer.rooms)
