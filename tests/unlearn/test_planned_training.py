import math

import pytest
import torch

from harness.unlearn.planned_training import OptimizerSettings, train


class Line(torch.nn.Module):
    """y = w x, as small as a model that the Trainer takes can be."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[value]]))
        self.norm = torch.nn.LayerNorm(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def slope_loss(model, batch):
    """The gradient is the batch's number itself."""
    return {"loss": (model.weight * batch["slope"]).sum(), "twice": 2 * batch["slope"].sum()}


def slopes(*values: float) -> list[dict[str, torch.Tensor]]:
    return [{"slope": torch.tensor([value])} for value in values]


def test_every_batch_is_one_step_in_the_given_order():
    log = train(Line(), slopes(1.0, 4.0, 2.0), slope_loss, OptimizerSettings(learning_rate=1e-3), seed=0)
    assert [step.step for step in log] == [1, 2, 3]
    assert [step.losses["twice"] for step in log] == [2.0, 8.0, 4.0]
    assert [step.grad_norm for step in log] == pytest.approx([1.0, 4.0, 2.0])


def test_a_constant_schedule_has_the_full_rate_from_the_first_step_on():
    model = Line()
    log = train(model, slopes(0.5, 0.5, 0.5), slope_loss, OptimizerSettings(learning_rate=1e-2), seed=0)
    assert [step.learning_rate for step in log] == pytest.approx([1e-2] * 3)
    # AdamW moves by the rate itself while gradients stay the same.
    assert model.weight.item() == pytest.approx(1.0 - 3e-2, abs=1e-5)


def test_the_cosine_schedule_warms_up_and_ends_near_five_percent():
    settings = OptimizerSettings(learning_rate=1.0, schedule="cosine", warmup_share=0.1)
    rates = [step.learning_rate for step in train(Line(), slopes(*[0.5] * 40), slope_loss, settings, seed=0)]
    assert rates[0] < rates[1] < rates[4] == pytest.approx(1.0)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0.05 <= rates[-1] < 0.06


def test_gradients_are_clipped_to_the_norm():
    """SGD-like evidence: with betas 0 AdamW's step follows the sign, so the log's norm is the only witness."""
    log = train(Line(), slopes(100.0), slope_loss, OptimizerSettings(learning_rate=1e-3, max_grad_norm=1.0), seed=0)
    assert log[0].grad_norm == pytest.approx(100.0)


def test_weight_decay_spares_norms():
    model = Line(8.0)
    settings = OptimizerSettings(learning_rate=1e-2, weight_decay=1.0)
    train(model, slopes(0.0, 0.0), lambda m, b: {"loss": (m.weight * b["slope"]).sum() + 0 * m.norm.weight.sum()},
          settings, seed=0)  # fmt: skip
    assert model.weight.item() == pytest.approx(8.0 * 0.99**2, rel=1e-5)
    assert model.norm.weight.item() == 1.0


def test_bfloat16_updates_lose_steps_below_the_spacing_of_a_weight():
    exact, rounded = Line(), Line()
    small = OptimizerSettings(learning_rate=1e-4)
    train(exact, slopes(1.0, 1.0), slope_loss, small, seed=0)
    train(rounded, slopes(1.0, 1.0), slope_loss, OptimizerSettings(learning_rate=1e-4, update_precision="bfloat16"),
          seed=0)  # fmt: skip
    assert exact.weight.item() < 1.0
    assert rounded.weight.item() == 1.0


def test_bfloat16_updates_that_are_large_enough_land_on_bfloat16_numbers():
    model = Line()
    settings = OptimizerSettings(learning_rate=3e-2, update_precision="bfloat16")
    train(model, slopes(1.0, 1.0), slope_loss, settings, seed=0)
    assert model.weight.item() < 1.0
    assert torch.equal(model.weight, model.weight.to(torch.bfloat16).float())


def test_progress_is_reported_after_each_step():
    seen: list[tuple[int, int]] = []
    train(Line(), slopes(1.0, 1.0, 1.0), slope_loss, OptimizerSettings(learning_rate=1e-3), seed=0,
          on_progress=lambda done, steps: seen.append((done, steps)))  # fmt: skip
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_loss_that_is_not_finite_is_kept_as_it_came():
    log = train(Line(), slopes(1.0, float("inf")), slope_loss, OptimizerSettings(learning_rate=1e-3), seed=0)
    assert log[0].losses["loss"] == 1.0
    assert math.isinf(log[1].losses["loss"])


def test_training_leaves_nothing_behind_and_prints_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    train(Line(), slopes(1.0), slope_loss, OptimizerSettings(learning_rate=1e-3), seed=0)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""
