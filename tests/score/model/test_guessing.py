"""Guessed continuations change how many passes are run, and never a token."""

from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.score.model.batching import Batches, chunks_by_budget
from harness.score.model.decoding import Lookup, written
from harness.score.model.generation import GreedyGenerator
from harness.score.model.language_model import QuenchLM
from harness.score.model.logits import PIECE, LogitSource

TOKENS = st.lists(st.integers(0, 3), max_size=40)


@given(tokens=TOKENS, most=st.integers(1, 5))
def test_a_proposal_stood_before_after_the_same_two_tokens_or_more(tokens, most):
    found = Lookup(tokens).propose(most)
    earlier = [
        tokens[place : place + most] for place in range(2, len(tokens)) if tokens[place - 2 : place] == tokens[-2:]
    ]
    assert found in earlier if earlier else found == []


@given(tokens=TOKENS, cut=st.integers(0, 40))
def test_tokens_may_be_added_in_any_portions(tokens, cut):
    portions = Lookup(tokens[:cut])
    portions.extend(tokens[cut:])
    assert portions.propose(3) == Lookup(tokens).propose(3)


def test_the_longest_match_is_trusted_and_the_latest_of_its_length():
    assert Lookup([1, 2, 3, 9, 7, 2, 3, 8, 1, 2, 3]).propose(2) == [9, 7]
    assert Lookup([5, 5, 2, 3, 9, 4, 2, 3, 8, 6, 2, 3]).propose(1) == [8]
    assert Lookup([1, 2, 3]).propose(4) == []


@given(lengths=st.lists(st.integers(0, 30), max_size=20), budget=st.integers(1, 90))
def test_slices_of_rows_cover_all_within_budget_or_hold_one_row(lengths, budget):
    parts = list(chunks_by_budget(lengths, budget))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(len(lengths)))
    for part in parts:
        assert part.stop - part.start == 1 or max(lengths[part]) * (part.stop - part.start) <= budget


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neox"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_draft_changes_a_token(models, plain_greedy, kind, data):
    """Right, wrong, half right, too long and missing drafts, in one batch."""
    model = models[kind]
    prompts = data.draw(st.lists(st.lists(st.integers(3, 359), min_size=1, max_size=12), min_size=1, max_size=4))
    expected = [plain_greedy(model, prompt, 7) for prompt in prompts]
    drafts = []
    for answer in expected:
        right = data.draw(st.integers(0, len(answer)))
        drafts.append([*answer[:right], *data.draw(st.lists(st.integers(2, 359), max_size=6))])
    judged = {}
    generate = GreedyGenerator(LogitSource(model), end_ids=[2], batches=Batches(tokens=40), prompt_tokens=9)
    found = generate(prompts, max_new_tokens=7, drafts=drafts, on_draft=judged.__setitem__)
    assert found == expected
    assert {row: len(one.correct) for row, one in judged.items()} == {row: len(d) for row, d in enumerate(drafts)}


def test_a_draft_is_judged_as_one_pass_over_the_whole_text_would(models, plain_logprobs):
    model = models["llama"]
    prompts, drafts = [[5, 9, 31], [77, 8, 200, 41, 4]], [[11, 12, 300, 7], [6]]
    judged = {}
    generate = GreedyGenerator(LogitSource(model), end_ids=[2], batches=Batches())
    generate(prompts, max_new_tokens=3, drafts=drafts, on_draft=judged.__setitem__)
    for row, (prompt, draft) in enumerate(zip(prompts, drafts, strict=True)):
        expected = plain_logprobs(model, [*prompt, *draft], len(prompt))
        assert judged[row].logprobs == pytest.approx(expected, abs=1e-5)


def test_a_row_that_ends_at_once_keeps_the_judgement_of_its_draft(models, plain_greedy):
    """Its tokens stay none while others go on, and later guesses must not pass for drafts."""
    model = models["llama"]
    prompts = [[5, 9, 31], [77, 8, 200, 41, 4]]
    end = plain_greedy(model, prompts[0], 1, end=-1)
    assert end != plain_greedy(model, prompts[1], 1, end=-1)
    judged = {}
    generate = GreedyGenerator(LogitSource(model), end_ids=end, batches=Batches())
    found = generate(prompts, max_new_tokens=6, drafts=[[11, 12, 13], [6, 7]], on_draft=judged.__setitem__)
    assert found[0] == []
    assert len(found[1]) > 1
    assert [len(judged[row].logprobs) for row in (0, 1)] == [3, 2]


def passes(model, run):
    """Returns the widths of the passes that a piece of work runs."""
    widths = []
    handle = model.base_model.register_forward_pre_hook(
        lambda module, args, named: widths.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    run()
    handle.remove()
    return widths


def test_a_right_draft_saves_all_further_passes_and_a_repeating_text_most(models, plain_greedy):
    model = models["llama"]
    prompt = [5, 9, 31, 77]
    answer = plain_greedy(model, prompt, 24, end=-1)
    generate = GreedyGenerator(LogitSource(model), end_ids=[], batches=Batches())
    assert len(passes(model, lambda: generate([prompt], max_new_tokens=24, drafts=[answer]))) == 2
    looping = [*prompt, *answer, *prompt]
    assert generate([looping], max_new_tokens=20) == [plain_greedy(model, looping, 20, end=-1)]
    without = len(passes(model, lambda: generate([prompt], max_new_tokens=24)))
    assert 2 < without <= 25


def test_the_reference_is_the_draft_and_its_judgement_is_not_made_again(models, tokenizer, plain_greedy):
    model = models["llama"]
    lm = QuenchLM(model, tokenizer)
    prompt, reference = "nine bells ring in ", "the old harbour of orla head"
    asked = SimpleNamespace(
        args=(prompt, {"until": [], "max_gen_toks": 6}), doc={"prompt": prompt, "reference": reference}
    )
    text = tokenizer.decode(plain_greedy(model, tokenizer(prompt)["input_ids"], 6), skip_special_tokens=True)
    assert lm.generate_until([asked]) == [text]
    follows = tokenizer(prompt + reference)["input_ids"][: len(tokenizer(prompt)["input_ids"])]
    again = passes(model, lambda: lm.texts.score_continuations([(prompt, reference)]))
    alone = QuenchLM(model, tokenizer).texts.score_continuations([(prompt, reference)])
    assert (again == []) == (follows == tokenizer(prompt)["input_ids"])
    (found,) = lm.texts.score_continuations([(prompt, reference)])
    assert found.logprobs == pytest.approx(alone[0].logprobs, abs=1e-5)
    assert found.correct == alone[0].correct


def test_a_stop_string_inside_an_accepted_draft_ends_the_row_there():
    new = [[], []]
    alive = written(new, [0, 1], [[4, 5, 6], [4, 2, 9]], 9, frozenset({2}), lambda rows: [5 in row for row in rows])
    assert new == [[4, 5], [4]]
    assert alive == [-1, -1]
    assert written([[]], [0], [[7, 7, 7]], 2, frozenset(), None) == [-1]
    assert written([[], []], [1, -1], [[7], [8]], 2, frozenset(), None) == [1, -1]


def test_feed_forward_blocks_in_pieces_give_the_same_bits_and_are_left_as_they_were(new_model):
    import torch

    model = new_model("llama", seed=3)
    source = LogitSource(model)
    ids = torch.arange(PIECE + 70)[None] % 360
    with torch.inference_mode():
        whole = model.model(input_ids=ids, use_cache=False).last_hidden_state
        assert torch.allclose(source.read(ids), whole, rtol=1e-5, atol=1e-5)
        assert source._piece < PIECE
        source._piece = PIECE
        assert torch.equal(source.read(ids), whole)
    assert all("forward" not in layer.mlp.__dict__ for layer in model.model.layers)


def test_experts_that_get_all_rows_tokens_as_one_matrix_are_run_whole(new_model):
    import torch

    model = new_model("llama", seed=3)
    source = LogitSource(model)
    mlp = model.model.layers[0].mlp
    hidden = torch.randn(2 * PIECE, 32)
    with torch.inference_mode(), source._at_full_speed():
        assert "forward" in vars(mlp)
        found = mlp(hidden)
    assert torch.equal(found, mlp(hidden))


def test_memory_switches_of_transformers_are_left_as_they_were(models, monkeypatch):
    import os

    import torch

    switch = "TRANSFORMERS_SDPA_FORCE_GQA"
    for before in (None, "0"):
        monkeypatch.delenv(switch, raising=False) if before is None else monkeypatch.setenv(switch, before)
        with torch.inference_mode():
            LogitSource(models["qwen2"]).read(torch.tensor([[5, 6, 7]]))
        assert os.environ.get(switch) == before


def test_shared_heads_and_copied_heads_give_the_same_numbers(models, plain_greedy):
    """Two heads share a key in this model; rows of unlike length need a mask."""
    model = models["qwen2"]
    prompts = [[5, 9, 31, 77, 8], [6, 100], [41]]
    generate = GreedyGenerator(LogitSource(model), end_ids=[2], batches=Batches())
    assert generate(prompts, max_new_tokens=9) == [plain_greedy(model, prompt, 9) for prompt in prompts]
