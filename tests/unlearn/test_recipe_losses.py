"""The six losses as the recipes put them together, values and gradients, against sums in double precision by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from harness.unlearn.losses import IGNORED
from harness.unlearn.recipes import load_recipe
from harness.unlearn.trainer import _loss

ROWS, LENGTH, WORDS = 2, 4, 5
BETA, WEIGHT = 0.3, 1.7
REFERENCE = [-4.0, -6.5]


class Table(torch.nn.Module):
    """A model whose logits are its parameters: [side, row, position, word]."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        drawn = torch.randn(2, ROWS, LENGTH, WORDS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.logits = torch.nn.Parameter(drawn)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits[int(input_ids[0, 0])])


def batch() -> dict[str, torch.Tensor]:
    made = {"forget_reference": torch.tensor(REFERENCE, dtype=torch.float64)}
    for side, name in enumerate(("forget", "retain")):
        labels = torch.randint(0, WORDS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(side + 5))
        labels[1, 3] = IGNORED
        made |= {f"{name}_labels": labels, f"{name}_input_ids": torch.full((ROWS, LENGTH), side)}
        made[f"{name}_attention_mask"] = torch.ones(ROWS, LENGTH, dtype=torch.int64)
    return made


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score) for score in scores]
    return [power / math.fsum(powers) for power in powers]


def by_hand(forget_loss: str, retain_loss: str, logits: torch.Tensor, frozen: torch.Tensor) -> tuple[float, list]:
    """Value, and gradient by (side, row, position, word), of one recipe's loss."""
    data = batch()
    gradient = torch.zeros_like(logits)
    places = {
        name: [(r, t, int(data[f"{name}_labels"][r, t + 1])) for r in range(ROWS) for t in range(LENGTH - 1)
               if int(data[f"{name}_labels"][r, t + 1]) != IGNORED]
        for name in ("forget", "retain")
    }  # fmt: skip
    chances = {
        (side, r, t): softmax(logits[side, r, t].tolist())
        for side, name in enumerate(("forget", "retain"))
        for r, t, _ in places[name]
    }
    if forget_loss == "ga":
        share = {row: 1 / len(places["forget"]) for row in range(ROWS)}
        value = math.fsum(math.log(chances[0, r, t][y]) for r, t, y in places["forget"]) / len(places["forget"])
    else:
        sums = [math.fsum(math.log(chances[0, r, t][y]) for r, t, y in places["forget"] if r == row)
                for row in range(ROWS)]  # fmt: skip
        value = -(2 / BETA) * math.fsum(
            math.log(1 / (1 + math.exp(BETA * (own - old)))) for own, old in zip(sums, REFERENCE, strict=True)
        ) / ROWS  # fmt: skip
        # d/ds of -(2/b) log sigmoid(-b s) is 2 sigmoid(b s).
        share = {row: 2 / (1 + math.exp(-BETA * (sums[row] - REFERENCE[row]))) / ROWS for row in range(ROWS)}
    for r, t, y in places["forget"]:
        for word in range(WORDS):
            gradient[0, r, t, word] += share[r] * ((word == y) - chances[0, r, t][word])
    count = len(places["retain"])
    for r, t, y in places["retain"] if retain_loss != "none" else ():
        old = softmax(frozen[1, r, t].tolist())
        own = chances[1, r, t]
        if retain_loss == "gdr":
            value += WEIGHT * -math.log(own[y]) / count
            wanted = [float(word == y) for word in range(WORDS)]
        else:
            value += WEIGHT * math.fsum(p * math.log(p / q) for p, q in zip(old, own, strict=True)) / count
            wanted = old
        for word in range(WORDS):
            gradient[1, r, t, word] += WEIGHT * (own[word] - wanted[word]) / count
    return value, gradient.flatten().tolist()


@pytest.mark.parametrize("retain_loss", ["none", "gdr", "klr"])
@pytest.mark.parametrize("forget_loss", ["ga", "npo"])
def test_value_and_gradient_are_those_written_out_by_hand(forget_loss, retain_loss):
    name = forget_loss if retain_loss == "none" else f"{forget_loss}_{retain_loss}"
    model, reference = Table(1), Table(2)
    parts = _loss(load_recipe(name, npo_beta=BETA, retain_weight=WEIGHT), reference)(model, batch())
    parts["loss"].backward()
    value, gradient = by_hand(forget_loss, retain_loss, model.logits.detach(), reference.logits.detach())
    assert float(parts["loss"]) == pytest.approx(value, abs=1e-6)
    assert model.logits.grad.flatten().tolist() == pytest.approx(gradient, abs=1e-6)
    assert reference.logits.grad is None


def test_the_six_gradients_are_six_different_ones():
    found = {
        tuple(
            round(value, 9) for value in by_hand(forget, retain, Table(1).logits.detach(), Table(2).logits.detach())[1]
        )
        for forget in ("ga", "npo")
        for retain in ("none", "gdr", "klr")
    }
    assert len(found) == 6
