"""The logits of a causal language model, computed only where they are needed.

A [tokens, vocabulary] table is the largest thing in a scoring run, and most of
it is never looked at: generation needs the last position, log-probabilities
need a slice at a time. Where the logits are exactly the output layer applied
to the last hidden state (checked once on a few tokens) the two are run apart;
models that scale or cap their logits are asked for whole logits instead.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from threading import Lock
from typing import Any

PIECE = 256
"""Tokens that a feed-forward block gets at a time on a CPU.

Measured on SmolLM2-135M and a text of 1,822 tokens, CPU seconds of the decoder:
7.9 whole, 7.2 by 512, 6.9 by 256, 7.3 by 128.
"""

_SHARE = 8_192
"""Weights for each token of a piece."""


class LogitSource:
    """A model's forward pass, split into hidden states and output layer where that is exact.

    Attributes:
        model: The model, in evaluation mode.
        slices: Whether logits are made from hidden states slice by slice.
        vocabulary: Number of logits per position.
        parameters: Number of the model's parameters.
        in_memory: Whether all of them are in memory; some are read whenever they are needed if not.
        takes_places: Whether positions and a mask can be given, as rows of unlike length need.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._decoder, self._head = _decoder_and_head(model)
        self.slices = self._head is not None
        self.vocabulary = int(self._head.weight.shape[0] if self.slices else model.config.get_text_config().vocab_size)
        self._module = self._decoder if self.slices else model
        known = inspect.signature(self._module.forward).parameters
        # transformers renamed the argument in 5.24.
        self._cache_name = "cache" if "cache" in known else "past_key_values"
        self._keeps_some = not self.slices and "logits_to_keep" in known
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.in_memory = not any(parameter.is_meta for parameter in model.parameters())
        # A small model's pieces must be small beside its weights, too.
        self._piece = min(PIECE, max(1, self.parameters // _SHARE))
        self._linears = replaceable(model)
        self._lock, self._passes = Lock(), 0
        self._blocks = [module for module in model.modules() if _is_by_token(module)]
        self._attention = getattr(model.config.get_text_config(), "_attn_implementation", None)
        self.takes_places = "position_ids" in known and self._attention in ("sdpa", "eager")

    @property
    def device(self) -> Any:
        """The torch device that inputs must lie on."""
        return self.model.device

    def read(self, ids: Any, *, cache: Any = None, **where: Any) -> Any:
        """Returns what ``logits`` turns into logits: [rows, width, hidden size or vocabulary].

        Args:
            ids: Token ids [rows, width].
            cache: Keys and values of earlier tokens, to be added to; None for none.
            **where: ``position_ids`` [rows, width] and ``attention_mask``
                [rows, 1, width, tokens], True where a token is seen; where the
                defaults won't do.
        """
        if "attention_mask" in where and self._attention == "eager":
            where["attention_mask"] = self._to_be_added(where["attention_mask"])
        output = self._forward(ids, cache, where)
        return output.last_hidden_state if self.slices else output.logits

    def logits(self, taken: Any) -> Any:
        """Returns logits [n, vocabulary] for n positions taken out of what ``read`` gave."""
        if not self.slices:
            return taken
        with self._at_full_speed():
            return self._head(taken)

    def fill(self, ids: Any, cache: Any) -> None:
        """Runs tokens [rows, width] for their keys and values alone."""
        self._forward(ids, cache, {"logits_to_keep": 1} if self._keeps_some else {})

    def _forward(self, ids: Any, cache: Any, where: Mapping[str, Any]) -> Any:
        kept = {"use_cache": False} if cache is None else {"use_cache": True, self._cache_name: cache}
        with self._at_full_speed():
            return self._module(input_ids=ids, **kept, **where)

    @contextmanager
    def _at_full_speed(self) -> Iterator[None]:
        """Changes the model for the passes within; after the last of them, in whatever thread, it is as it was."""
        with self._lock:
            if self._passes == 0:
                self._changes = ExitStack()
                self._changes.enter_context(_shared_heads(self.device))
                self._changes.enter_context(_in_pieces(self._blocks if self.device.type == "cpu" else (), self._piece))
                self._changes.enter_context(through_onednn(self._linears))
            self._passes += 1
        try:
            yield
        finally:
            with self._lock:
                self._passes -= 1
                if self._passes == 0:
                    self._changes.close()

    def _to_be_added(self, mask: Any) -> Any:
        import torch

        added = torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device)
        return added.masked_fill_(~mask, torch.finfo(self.model.dtype).min)


@contextmanager
def _shared_heads(device: Any) -> Iterator[None]:
    """Lets attention heads share keys and values without copies of them, masked or not, where a CPU's kernel can.

    transformers copies them for each head when there is a mask, which took
    three quarters of a pass over a few tokens of a model with three heads a key.
    """
    switch = "TRANSFORMERS_SDPA_FORCE_GQA"
    before = os.environ.get(switch)
    if device.type == "cpu":
        os.environ[switch] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(switch, None)
        else:
            os.environ[switch] = before


def _is_by_token(module: Any) -> bool:
    """Returns whether a module is a feed-forward block that takes hidden states alone (Bloom's takes two things)."""
    return type(module).__name__.endswith("MLP") and len(inspect.signature(module.forward).parameters) == 1


@contextmanager
def _in_pieces(blocks: Sequence[Any], piece: int) -> Iterator[None]:
    """Has feed-forward blocks run a few hundred tokens at a time.

    Each token passes such a block by itself, so the pieces change nothing but,
    where they are very small, the last bits; the widest tables of a pass stay
    in the CPU's caches, and a long text needs less memory.
    """
    for block in blocks:
        block.forward = partial(_run_in_pieces, block.forward, piece)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _run_in_pieces(forward: Callable[[Any], Any], piece: int, hidden: Any) -> Any:
    import torch

    size = max(1, piece // len(hidden))
    # Experts get the tokens of all rows as one matrix.
    if hidden.dim() != 3 or hidden.shape[1] <= size:
        return forward(hidden)
    return torch.cat([forward(piece) for piece in hidden.split(size, dim=1)], dim=1)


def _decoder_and_head(model: Any) -> tuple[Any, Any]:
    """Returns decoder and output layer, or (None, None) where they don't make up the logits alone."""
    import torch

    head = model.get_output_embeddings()
    decoder = getattr(model, "base_model", None)
    if head is None or decoder is None or decoder is model or not hasattr(head, "weight"):
        return None, None
    probe = torch.arange(4, device=model.device)[None] % head.weight.shape[0]
    with torch.inference_mode():
        try:
            sliced = head(decoder(input_ids=probe, use_cache=False).last_hidden_state)
            whole = model(input_ids=probe, use_cache=False).logits
        except (AttributeError, TypeError):
            return None, None
    same = sliced.shape == whole.shape and torch.allclose(sliced, whole, rtol=1e-3, atol=1e-3, equal_nan=True)
    return (decoder, head) if same else (None, None)


_WORTHWHILE = 2**24
"""Multiplications of a layer from which on the call itself costs next to nothing."""


def replaceable(model: Any) -> list[Any]:
    """Returns the modules of a model that ``through_onednn`` can speed up on this machine, possibly none."""
    import torch

    if model.device.type != "cpu" or not _is_faster_here():
        return []
    return [
        module for module in model.modules() if type(module) is torch.nn.Linear and module.weight.dtype == torch.float32
    ]


@contextmanager
def through_onednn(linears: Sequence[Any]) -> Iterator[None]:
    """Has these linear layers computed by oneDNN within the block."""
    for linear in linears:
        linear.forward = partial(_forward, linear)
    try:
        yield
    finally:
        for linear in linears:
            del linear.forward


def _forward(linear: Any, hidden: Any) -> Any:
    import torch

    weight = linear.weight
    if hidden.dtype != weight.dtype or hidden.numel() * len(weight) < _WORTHWHILE:
        return torch.nn.functional.linear(hidden, weight, linear.bias)
    return torch.ops.mkldnn._linear_pointwise(hidden, weight, linear.bias, "none", [], "")


@cache
def _is_faster_here() -> bool:
    """Returns whether this CPU is of the kind that gained, and torch's operator (compiled models use it) is there."""
    import torch

    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    hidden, weight = torch.linspace(-1, 1, 64).reshape(4, 16), torch.linspace(-2, 1, 128).reshape(8, 16)
    try:
        found = torch.ops.mkldnn._linear_pointwise(hidden, weight, None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(torch.allclose(found, hidden @ weight.T, atol=1e-5))
