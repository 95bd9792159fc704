"""Backends that lie, each in its own way, and the sentence that the proof catches them with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness import quantize
from harness.errors import QuantizationError
from harness.quantize.backends.rtn import round_to_grid
from harness.quantize.formats.codes import ReadBack
from harness.quantize.models.dense import block_linears, load_dense, replace_weight
from harness.quantize.proof import most_levels, prove
from harness.records import Checkpoint, Proof

SPEC = quantize.resolve("rtn-4bit-g64")


class FakeBackend:
    """An honest 4-bit backend with one place to tamper with."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.model = load_dense(checkpoint, device="cpu")
        self.linears = block_linears(self.model)
        self.layers: dict[str, ReadBack] = {}
        for name, linear in self.linears.items():
            grid = round_to_grid(linear.weight.detach(), bits=4, group_size=64, symmetric=False)
            replace_weight(linear, grid.dequantize())
            self.layers[name] = ReadBack(codes=grid.codes, scales=grid.scales, zeros=grid.zeros, bits=4, group_size=64)
        self.first = next(iter(self.linears))

    def change(self, **fields: Any) -> None:
        self.layers[self.first] = dataclasses.replace(self.layers[self.first], **fields)

    def proof(self) -> Proof:
        return prove(self.model, self.checkpoint, SPEC, self.layers, remarks=("a remark",))


@pytest.fixture
def fake(checkpoint_of: Callable[[str], Checkpoint]) -> FakeBackend:
    return FakeBackend(checkpoint_of("llama"))


def test_an_honest_backend_passes_with_its_measures(fake: FakeBackend) -> None:
    proof = fake.proof()
    assert proof.remarks == ("a remark",)
    assert proof.max_levels == 16
    original = load_dense(fake.checkpoint, device="cpu")
    pairs = [
        (linear.weight.detach(), fake.linears[name].weight.detach()) for name, linear in block_linears(original).items()
    ]
    error = sum(float((new - old).double().square().sum()) for old, new in pairs) ** 0.5
    norm = sum(float(old.double().square().sum()) for old, _ in pairs) ** 0.5
    assert proof.relative_error == pytest.approx(error / norm)
    assert proof.max_abs_error == pytest.approx(max(float((new - old).abs().max()) for old, new in pairs))
    sizes = torch.cat([(new - old).double().abs().reshape(-1) for old, new in pairs])
    assert proof.mean_abs_error == pytest.approx(float(sizes.mean()))
    assert proof.symmetric is False


def test_weights_that_stayed_in_16_bit_are_caught(fake: FakeBackend) -> None:
    original = block_linears(load_dense(fake.checkpoint, device="cpu"))
    for name, linear in fake.linears.items():
        replace_weight(linear, original[name].weight)
    with pytest.raises(QuantizationError, match="dense weights differ from what the codes say"):
        fake.proof()


def test_half_of_the_layers_left_out_are_caught(fake: FakeBackend) -> None:
    for name in list(fake.layers)[::2]:
        del fake.layers[name]
    with pytest.raises(QuantizationError, match=r"7 of 14 linear layers.*first is model\.layers\.0"):
        fake.proof()


def test_a_single_weight_beside_its_code_is_caught(fake: FakeBackend) -> None:
    with torch.no_grad():
        fake.linears[fake.first].weight[3, 5] += 1e-6
    with pytest.raises(QuantizationError, match="1 of 16384 dense weights differ"):
        fake.proof()


def test_codes_that_are_not_the_weights_are_caught(fake: FakeBackend) -> None:
    codes = fake.layers[fake.first].codes.clone()
    codes[0, 0] = (codes[0, 0] + 1) % 16
    fake.change(codes=codes)
    with pytest.raises(QuantizationError, match="1 of 16384 dense weights differ"):
        fake.proof()


def test_too_many_levels_are_caught_even_where_codes_and_weights_agree(fake: FakeBackend) -> None:
    wide = round_to_grid(
        torch.randn(128, 128, generator=torch.Generator().manual_seed(1)), bits=6, group_size=64, symmetric=False
    )
    replace_weight(fake.linears[fake.first], wide.dequantize())
    fake.change(codes=wide.codes, scales=wide.scales, zeros=wide.zeros)
    with pytest.raises(QuantizationError, match=r"a group of .* holds \d\d distinct values"):
        fake.proof()


def test_a_scale_for_every_weight_is_caught(fake: FakeBackend) -> None:
    layer = fake.layers[fake.first]
    fake.change(scales=torch.ones(128, 128), zeros=torch.zeros(128, 128, dtype=torch.uint8))
    with pytest.raises(QuantizationError, match="came with 16384 scales for 256 groups"):
        fake.proof()
    fake.change(scales=layer.scales, zeros=torch.zeros(128, 128, dtype=torch.uint8))
    with pytest.raises(QuantizationError, match="came with 16384 zero points for 256 groups"):
        fake.proof()


def test_a_code_book_with_more_levels_than_codes_is_caught(fake: FakeBackend) -> None:
    fake.change(book=torch.linspace(-1, 1, 256), zeros=None)
    with pytest.raises(QuantizationError, match=r"code book of .* has 256 levels"):
        fake.proof()


@pytest.mark.parametrize("fields", [{"bits": 8}, {"group_size": 32}, {"group_size": None}])
def test_other_bits_or_groups_than_the_preset_says_are_caught(fake: FakeBackend, fields: dict[str, Any]) -> None:
    fake.change(**fields)
    with pytest.raises(QuantizationError, match="and the preset says 4 bits in groups of 64"):
        fake.proof()


def test_codes_of_another_shape_or_type_are_caught(fake: FakeBackend) -> None:
    codes = fake.layers[fake.first].codes
    for wrong in (codes[:, :64], codes.to(torch.int32)):
        fake.change(codes=wrong)
        with pytest.raises(QuantizationError, match="came back as"):
            fake.proof()


def test_weights_that_are_no_numbers_are_caught(fake: FakeBackend) -> None:
    with torch.no_grad():
        fake.linears[fake.first].weight[0, 0] = float("nan")
    with pytest.raises(QuantizationError, match="NaN or infinity after dequantizing"):
        fake.proof()


def test_a_quantized_head_is_caught(fake: FakeBackend) -> None:
    fake.layers["lm_head"] = fake.layers[fake.first]
    with pytest.raises(QuantizationError, match="it quantized lm_head"):
        fake.proof()


def test_the_digest_is_that_of_the_codes(fake: FakeBackend) -> None:
    before = fake.proof().codes_sha256
    layer = fake.layers[fake.first]
    codes = layer.codes.clone()
    codes[0, 0] = (codes[0, 0] + 1) % 16
    fake.change(codes=codes)
    replace_weight(fake.linears[fake.first], fake.layers[fake.first].dequantize())
    assert fake.proof().codes_sha256 != before


def test_levels_are_counted_within_groups_rows_and_flat_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.quantize import proof

    weight = torch.tensor([[1.0, 1.0, 2.0, 3.0, 3.0], [4.0, 5.0, 5.0, 6.0, 7.0]])
    for chunk in (1 << 22, 4):
        monkeypatch.setattr(proof, "_CHUNK", chunk)
        assert most_levels(weight, group_size=None) == 4
        assert most_levels(weight, group_size=2) == 2
        assert most_levels(weight, group_size=4) == 3
        assert most_levels(weight, group_size=5, flat=True) == 4
        # Flat groups of 3: (1,1,2) (3,3,4) (5,5,6) (7).
        assert most_levels(weight, group_size=3, flat=True) == 2


@pytest.mark.parametrize("group_size", [3, 4, 10])
def test_flat_groups_cross_rows_when_read_back(group_size: int) -> None:
    codes = torch.arange(10, dtype=torch.uint8).view(2, 5)
    groups = -(-10 // group_size)
    scales = torch.arange(1, groups + 1).float()
    layer = ReadBack(codes=codes, scales=scales, bits=4, group_size=group_size, flat=True, book=torch.arange(16.0))
    expected = [float(position * (position // group_size + 1)) for position in range(10)]
    assert layer.dequantize().reshape(-1).tolist() == expected
    assert layer.overhead_bytes == 4 * groups


def test_a_symmetric_preset_with_zero_points_of_its_own_is_caught(fake: FakeBackend) -> None:
    symmetric = dataclasses.replace(SPEC, symmetric=True)
    with pytest.raises(QuantizationError, match=r"0 is not the middle code of every group .* says symmetric"):
        prove(fake.model, fake.checkpoint, symmetric, fake.layers)


def test_an_asymmetric_preset_that_is_centred_throughout_is_caught(fake: FakeBackend) -> None:
    original = block_linears(load_dense(fake.checkpoint, device="cpu"))
    for name, linear in fake.linears.items():
        grid = round_to_grid(original[name].weight.detach(), bits=4, group_size=64, symmetric=True)
        replace_weight(linear, grid.dequantize())
        fake.layers[name] = ReadBack(codes=grid.codes, scales=grid.scales, zeros=grid.zeros, bits=4, group_size=64)
    with pytest.raises(QuantizationError, match="0 has the middle code in every group, and the preset says asymmetric"):
        fake.proof()
    assert prove(fake.model, fake.checkpoint, dataclasses.replace(SPEC, symmetric=True), fake.layers).max_levels == 16


def _reordered(fake: FakeBackend, index: torch.Tensor) -> None:
    """Quantizes the first layer in the order of its groups, each column staying in its place."""
    order = index.argsort(stable=True)
    weight = block_linears(load_dense(fake.checkpoint, device="cpu"))[fake.first].weight.detach()
    grid = round_to_grid(weight[:, order], bits=4, group_size=64, symmetric=False)
    codes = torch.empty_like(grid.codes)
    codes[:, order] = grid.codes
    fake.change(codes=codes, scales=grid.scales, zeros=grid.zeros, group_index=index)
    replace_weight(fake.linears[fake.first], fake.layers[fake.first].dequantize())


def test_columns_in_another_order_hold_the_proof_by_their_own_groups(fake: FakeBackend) -> None:
    plain = fake.proof()
    _reordered(fake, torch.arange(128) % 2)
    proof = fake.proof()
    assert proof.max_levels == 16
    # The order itself is stored: four bytes for each of 128 columns.
    assert proof.size_bytes == plain.size_bytes + 4 * 128
    neighbours = most_levels(fake.linears[fake.first].weight.detach(), group_size=64)
    assert neighbours > 16


@pytest.mark.parametrize("index", [torch.arange(128) // 16, torch.zeros(128, dtype=torch.int64)])
def test_a_column_order_that_makes_more_or_larger_groups_is_caught(fake: FakeBackend, index: torch.Tensor) -> None:
    fake.change(group_index=index)
    with pytest.raises(QuantizationError, match=r"the column order of .* makes other groups than those of 64"):
        fake.proof()


def test_a_shift_for_every_weight_is_caught(fake: FakeBackend) -> None:
    fake.change(shifts=torch.zeros(128, 128))
    with pytest.raises(QuantizationError, match="came with 16384 shifts for 256 groups"):
        fake.proof()


def test_groups_that_a_library_chooses_are_told_and_still_counted(fake: FakeBackend) -> None:
    weight = block_linears(load_dense(fake.checkpoint, device="cpu"))[fake.first].weight.detach()
    grid = round_to_grid(weight, bits=4, group_size=32, symmetric=False)
    replace_weight(fake.linears[fake.first], grid.dequantize())
    fake.change(codes=grid.codes, scales=grid.scales, zeros=grid.zeros, group_size=32)
    with pytest.raises(QuantizationError, match="in groups of 32, and the preset says"):
        fake.proof()
    proof = prove(fake.model, fake.checkpoint, SPEC, fake.layers, any_group=True)
    assert proof.remarks == ("1 of 14 layers are quantized in groups of 32: the library chooses the group by the "
                             "layer's width.",)  # fmt: skip
    fake.change(group_size=128)
    with pytest.raises(QuantizationError, match="came with 512 scales for 128 groups"):
        prove(fake.model, fake.checkpoint, SPEC, fake.layers, any_group=True)


def test_without_16_bit_weights_everything_but_the_error_is_measured(fake: FakeBackend) -> None:
    known = fake.proof()
    unknown = prove(fake.model, None, SPEC, fake.layers, remarks=("a remark",))
    errors = {"max_abs_error": None, "mean_abs_error": None, "relative_error": None}
    assert unknown == dataclasses.replace(known, **errors)


def test_symmetry_is_what_was_found_and_not_what_was_asked_for(fake: FakeBackend) -> None:
    for name, linear in fake.linears.items():
        grid = round_to_grid(linear.weight.detach(), bits=4, group_size=64, symmetric=True)
        replace_weight(linear, grid.dequantize())
        fake.layers[name] = ReadBack(codes=grid.codes, scales=grid.scales, offset=8, bits=4, group_size=64)
    for claimed in (True, None):
        assert prove(fake.model, None, dataclasses.replace(SPEC, symmetric=claimed), fake.layers).symmetric is True
    book = torch.arange(-8.0, 8.0)
    for name, layer in fake.layers.items():
        fake.layers[name] = dataclasses.replace(layer, offset=0, book=book)
    assert prove(fake.model, None, dataclasses.replace(SPEC, symmetric=None), fake.layers).symmetric is None


def test_a_layer_of_another_width_is_proved_at_its_own_where_widths_may_differ(fake: FakeBackend) -> None:
    linear = fake.linears[fake.first]
    grid = round_to_grid(linear.weight.detach(), bits=6, group_size=64, symmetric=False)
    replace_weight(linear, grid.dequantize())
    fake.change(codes=grid.codes, scales=grid.scales, zeros=grid.zeros, bits=6)
    with pytest.raises(QuantizationError, match="has codes of 6 bits"):
        fake.proof()
    before = prove(fake.model, None, SPEC, fake.layers, any_bits=True)
    assert before.size_bytes > 0
    fake.change(bits=3)
    with pytest.raises(QuantizationError, match=r"doesn't fit into 3 bits|more than the 8 of 3 bits"):
        prove(fake.model, None, SPEC, fake.layers, any_bits=True)


def test_16_bit_weights_of_another_shape_are_no_reference(fake: FakeBackend) -> None:
    other = {name: torch.zeros(3, 3) for name in fake.layers}
    with pytest.raises(QuantizationError, match="they are not of one model, so name the right `base_model` or none"):
        prove(fake.model, None, SPEC, fake.layers, reference=other)


def test_the_error_is_measured_against_rescaled_weights_where_a_backend_rescales(fake: FakeBackend) -> None:
    plain = fake.proof()
    doubled = {name: 2 * linear.weight.detach() for name, linear in fake.linears.items()}
    proof = prove(fake.model, fake.checkpoint, SPEC, fake.layers, reference=doubled)
    assert plain.relative_error < 0.2
    assert proof.relative_error == pytest.approx(0.5)
    exact = {name: linear.weight.detach() for name, linear in fake.linears.items()}
    assert prove(fake.model, fake.checkpoint, SPEC, fake.layers, reference=exact).max_abs_error == 0
