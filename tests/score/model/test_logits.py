"""Linear layers by oneDNN: the same numbers as torch's own, only where they gain, and nothing left behind."""

import pytest

from harness.score.model import logits
from harness.score.model.log_probs import Scorer
from harness.score.model.logits import LogitSource


@pytest.fixture
def model(new_model):
    return new_model("llama", seed=4, hidden_size=64, vocab_size=640, tie_word_embeddings=False)


@pytest.fixture
def any_size(monkeypatch):
    """Small layers count as worth it, whatever this machine's processor is."""
    monkeypatch.setattr(logits, "_WORTHWHILE", 0)
    monkeypatch.setattr(logits, "_is_faster_here", lambda: True)


def needs_the_operator():
    import torch

    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch comes without oneDNN")


def calls(monkeypatch):
    """Notes the layers that oneDNN computes."""
    noted, own = [], logits._forward

    def note(linear, hidden):
        noted.append(linear)
        return own(linear, hidden)

    monkeypatch.setattr(logits, "_forward", note)
    return noted


def test_every_linear_layer_gives_torch_s_numbers_with_and_without_bias(any_size, new_model):
    import torch

    needs_the_operator()
    for shape in ("qwen2", "gpt_neox"):
        model = new_model(shape, seed=4)
        linears = logits.replaceable(model)
        assert len(linears) == sum(type(module) is torch.nn.Linear for module in model.modules()) > 8
        for linear in linears:
            hidden = torch.randn(2, 37, linear.in_features)
            with torch.inference_mode(), logits.through_onednn([linear]):
                found = linear(hidden)
            expected = torch.nn.functional.linear(hidden, linear.weight, linear.bias)
            assert found.shape == expected.shape
            assert torch.allclose(found, expected, atol=1e-5)


def test_a_text_is_judged_alike_either_way(any_size, monkeypatch, model):
    needs_the_operator()
    text = [(7 * place) % 600 + 1 for place in range(180)]
    noted = calls(monkeypatch)
    (by_onednn,) = Scorer(LogitSource(model))([text], [1])
    assert model.get_output_embeddings() in noted
    assert len(set(map(id, noted))) == len(logits.replaceable(model))
    monkeypatch.setattr(logits, "_is_faster_here", lambda: False)
    noted.clear()
    (by_torch,) = Scorer(LogitSource(model))([text], [1])
    assert not noted
    assert by_onednn.logprobs == pytest.approx(by_torch.logprobs, abs=1e-5)


def test_layers_are_as_they_were_after_the_block_and_after_an_error_in_it(any_size, model):
    linears = logits.replaceable(model)
    with logits.through_onednn(linears):
        assert all("forward" in vars(linear) for linear in linears)
    assert not any("forward" in vars(linear) for linear in linears)
    with pytest.raises(RuntimeError, match="stop"), logits.through_onednn(linears):
        raise RuntimeError("stop")
    assert not any("forward" in vars(linear) for linear in linears)


def test_small_layers_and_other_types_stay_with_torch(monkeypatch, model):
    import torch

    monkeypatch.setattr(logits, "_is_faster_here", lambda: True)
    head = model.get_output_embeddings()

    def forbidden(*args):
        raise AssertionError("oneDNN was asked")

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", forbidden, raising=False)
    with logits.through_onednn([head]):
        assert head(torch.ones(4, head.in_features)).shape == (4, head.out_features)
        many = logits._WORTHWHILE // head.weight.numel() + 1
        with pytest.raises(AssertionError, match="oneDNN was asked"):
            head(torch.ones(many, head.in_features))
    assert logits.replaceable(model.to(torch.bfloat16)) == []


@pytest.mark.parametrize("missing", ["library", "instructions", "operator"])
def test_a_machine_without_what_it_takes_keeps_torch_s_own(monkeypatch, model, missing):
    import torch

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: missing != "library")
    monkeypatch.setattr(
        torch.backends.cpu, "get_cpu_capability", lambda: "AVX2" if missing == "instructions" else "AVX512"
    )
    if missing == "operator":
        monkeypatch.delattr(torch.ops.mkldnn, "_linear_pointwise", raising=False)
        monkeypatch.setattr(torch.ops, "mkldnn", object())
    logits._is_faster_here.cache_clear()
    assert logits.replaceable(model) == []
    logits._is_faster_here.cache_clear()
