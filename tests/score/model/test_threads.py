"""Texts side by side on a CPU: the same numbers in the same order, the model as it was, torch's threads given back."""

import threading

import pytest

from harness.score.model import threads
from harness.score.model.batching import Batches
from harness.score.model.language_model import TextScorer
from harness.score.model.logits import LogitSource

TEXTS = [f"the keeper of lamp {number} waits in the rain " * (1 + number % 5) for number in range(9)]


@pytest.fixture
def two_threads():
    import torch

    before = torch.get_num_threads()
    # Making a model sets them to one.
    yield lambda: torch.set_num_threads(2)
    torch.set_num_threads(before)


def scorer(model, tokenizer, tokens=200):
    return TextScorer(LogitSource(model), tokenizer, max_length=700, batches=Batches(tokens=tokens))


def test_texts_in_two_lanes_get_the_numbers_that_they_get_alone(two_threads, monkeypatch, new_model, tokenizer):
    import torch

    model = new_model("llama", seed=6)
    alone = scorer(model, tokenizer).score_texts(TEXTS)
    monkeypatch.setattr(threads, "_LARGE", 0)
    two_threads()
    together = scorer(model, tokenizer)
    assert together._lanes == 2
    found = together.score_texts(TEXTS)
    for one, other in zip(found, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert one.correct == other.correct
    assert torch.get_num_threads() == 2
    assert all("forward" not in vars(module) for module in model.modules())


def test_lanes_really_run_at_the_same_time_each_with_one_thread(two_threads):
    import torch

    two_threads()
    both = threading.Barrier(2, timeout=20)

    def work(items):
        both.wait()
        return [(item, torch.get_num_threads()) for item in items]

    assert threads.side_by_side(work, list(range(5)), 2) == [(item, 1) for item in range(5)]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("items", "most"), [([], 2), ([7], 2), ([7, 8], 1)])
def test_what_needs_no_second_lane_stays_in_the_caller_s_thread(items, most):
    def work(given):
        assert threading.current_thread() is threading.main_thread()
        return [item + 1 for item in given]

    assert threads.side_by_side(work, items, most) == [item + 1 for item in items]


def test_memory_that_runs_out_in_a_lane_halves_the_batch(two_threads, monkeypatch, new_model, tokenizer):
    monkeypatch.setattr(threads, "_LARGE", 0)
    other = scorer(new_model("llama", seed=6), tokenizer)
    model = new_model("llama", seed=6)
    two_threads()
    made = scorer(model, tokenizer, tokens=10_000)
    own, sizes = made._score, []

    def short_of_memory(sequences, first):
        sizes.append(len(sequences))
        if len(sequences) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return own(sequences, first)

    made._score = short_of_memory
    assert [len(one.logprobs) for one in made.score_texts(TEXTS)] == [
        len(one.logprobs) for one in other.score_texts(TEXTS)
    ]
    assert max(sizes) > 2 >= sizes[-1]


def test_small_models_and_single_threads_have_one_lane(two_threads, new_model):
    import torch

    source = LogitSource(new_model("llama", seed=6))
    two_threads()
    assert threads.lanes_of(source) == 1
    source.parameters = 2**26
    assert threads.lanes_of(source) == 2
    torch.set_num_threads(1)
    assert threads.lanes_of(source) == 1


def test_a_failing_lane_leaves_the_model_as_it_was(two_threads, new_model):
    import torch

    model = new_model("llama", seed=6)
    source = LogitSource(model)
    two_threads()

    def work(items):
        source.read(torch.tensor([[5, 6, 7]]))
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        threads.side_by_side(work, [1, 2], 2)
    assert all("forward" not in vars(module) for module in model.modules())
    assert torch.get_num_threads() == 2
