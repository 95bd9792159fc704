"""The effective rank of an update: exact for small matrices, estimated for large ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from harness.quantize.models.dense import block_linears, load_dense, source_weights
from harness.quantize.survival import effective_rank as rank_of_update
from harness.quantize.survival.effective_rank import EXACT_SIDE, PROBES, effective_rank, ranks_of
from harness.records import Checkpoint

Mover = Callable[[Checkpoint, float], Checkpoint]
LARGE = (EXACT_SIDE + 40, EXACT_SIDE + 200)


def _drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _from_singular_values(update: torch.Tensor) -> float:
    squares = torch.linalg.svdvals(update).double().square()
    return float(squares.sum() ** 2 / squares.square().sum())


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("shape", [(40, 24), (24, 40), LARGE])
def test_the_effective_rank_of_equal_singular_values_is_their_number(rank: int, shape: tuple[int, int]) -> None:
    left, _ = torch.linalg.qr(_drawn(shape[0], rank))
    right, _ = torch.linalg.qr(_drawn(shape[1], rank, seed=1))
    assert effective_rank(1e-5 * left @ right.T) == pytest.approx(rank, rel=1e-3)


def test_the_effective_rank_is_that_of_the_singular_values() -> None:
    update = _drawn(30, 50)
    assert effective_rank(update) == pytest.approx(_from_singular_values(update), rel=1e-4)
    assert effective_rank(update.T) == pytest.approx(_from_singular_values(update), rel=1e-4)


@pytest.mark.parametrize("case", ["noise", "signs", "adapter", "adapter in noise", "slow decay"])
def test_the_estimate_for_large_matrices_is_within_3_percent(case: str) -> None:
    noise = 1e-4 * _drawn(*LARGE)
    adapter = _drawn(LARGE[0], 64, seed=1) @ _drawn(64, LARGE[1], seed=2)
    decay = torch.arange(1, LARGE[1] + 1).float() ** -0.45
    update = {
        "noise": noise, "signs": noise.sign(), "adapter": adapter, "adapter in noise": adapter + 2e4 * noise,
        "slow decay": noise * decay,
    }[case]  # fmt: skip
    gram = (update @ update.T).double()
    exact = float(gram.trace() ** 2 / gram.square().sum())
    assert exact > PROBES
    assert effective_rank(update) == pytest.approx(exact, rel=0.03)
    assert effective_rank(update) == effective_rank(update.T), "the same seed, whichever side is longer"


def test_small_matrices_are_not_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_of_update, "PROBES", 0)
    assert effective_rank(_drawn(EXACT_SIDE, 2)) == pytest.approx(2, rel=0.1)


def test_tiny_and_half_precision_updates_have_the_rank_of_what_they_hold() -> None:
    update = _drawn(20, 20)
    assert effective_rank(1e-20 * update) == pytest.approx(_from_singular_values(update), rel=1e-4)
    half = update.bfloat16()
    assert effective_rank(half) == pytest.approx(_from_singular_values(half.float()), rel=1e-4)


def test_no_update_has_no_rank() -> None:
    assert effective_rank(torch.zeros(4, 6)) is None


def test_each_layer_s_rank_is_that_of_its_update(checkpoint_of: Callable[[str], Checkpoint], moved: Mover) -> None:
    old = checkpoint_of("llama")
    new = moved(old, 0.01)
    names = list(block_linears(load_dense(old, device="cpu")))
    found = ranks_of(new, old, names)
    assert list(found) == names
    with source_weights(new) as now, source_weights(old) as then:
        for name, rank in found.items():
            assert rank == pytest.approx(_from_singular_values(now[name] - then[name]), rel=1e-3)
    assert set(ranks_of(old, old, names).values()) == {None}
