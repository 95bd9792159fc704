"""Which cards a run shares out."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import InputError
from harness.run import devices, sweep


@pytest.fixture
def two_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("nvidia0", "nvidia5", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("device", "cards"),
    [("cpu", ()), ("cuda", ("0", "1")), ("cuda:1", ("1",)), ("cuda:0,cuda:1", ("0", "1")), ("cuda:1, cuda:1", ("1",))],
)
def test_cards_are_counted_from_0_as_cuda_does(two_cards: Path, device: str, cards: tuple[str, ...]) -> None:
    assert devices.cards(device, nodes=two_cards) == cards


def test_only_what_the_environment_leaves_visible_is_shared_out(
    two_cards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7")
    assert devices.cards("cuda", nodes=two_cards) == ("3", "GPU-7")
    assert devices.cards("cuda:1", nodes=two_cards) == ("GPU-7",)


def test_a_card_that_is_not_there_is_refused(two_cards: Path) -> None:
    with pytest.raises(InputError, match="no cuda:4: this machine shows 2 cards"):
        devices.cards("cuda:1,cuda:4", nodes=two_cards)


def test_without_a_card_the_device_is_left_to_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices.cards("cuda:1", nodes=tmp_path) == ()


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu,cuda", "cpu,cpu", "", "cuda:0;cuda:1"])
def test_what_is_no_device_is_refused_in_one_sentence(device: str) -> None:
    with pytest.raises(InputError, match="is no device: give cpu"):
        devices.kind_of(device)


def test_one_job_runs_on_each_card() -> None:
    assert sweep.default_workers("cuda", 3) == 3
    assert sweep.default_workers("cuda", 0) == 1
