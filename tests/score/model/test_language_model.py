"""Fast generation and scoring against the plain loop, one text at a time, in float32."""

from types import SimpleNamespace

import pytest

from harness.errors import ScoringError
from harness.score import lm_eval_hooks
from harness.score.metrics.formulas import ANSWER_MARKERS, cut_answer
from harness.score.model import log_probs
from harness.score.model.batching import Batches, chunks
from harness.score.model.generation import GreedyGenerator, _shared_length
from harness.score.model.language_model import QuenchLM, StopStrings, TextScorer
from harness.score.model.log_probs import Scorer
from harness.score.model.logits import LogitSource

KINDS = ("llama", "qwen2", "gpt_neox")


def request(*arguments):
    return SimpleNamespace(args=arguments)


def knowmem_prompts(folder, shots=10, split="forget_qa"):
    found = lm_eval_hooks.knowmem_documents(corpus="news", questions=split, icl_pairs=shots, data_dir=str(folder))
    return [document["prompt"] for document in found[split]]


@pytest.fixture(scope="module")
def many(new_muse_folder, tmp_path_factory):
    """Many miniature documents: KnowMem prompts with a shared beginning, VerbMem prompts without."""
    folder = new_muse_folder(tmp_path_factory.mktemp("many"), seed=5, questions=60)
    return knowmem_prompts(folder, shots=5)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_with_a_shared_prefix_are_those_of_the_plain_loop(models, tokenizer, plain_greedy, many, kind):
    model = models[kind]
    ids = [tokenizer(prompt)["input_ids"] for prompt in many]
    assert _shared_length(ids) > 60
    generate = GreedyGenerator(LogitSource(model), end_ids=[2], batches=Batches())
    assert generate(ids, max_new_tokens=12) == [plain_greedy(model, one, 12) for one in ids]


@pytest.mark.parametrize("kind", KINDS)
def test_padded_batches_give_the_tokens_of_the_plain_loop(models, tokenizer, plain_greedy, many, kind):
    model = models[kind]
    ids = [tokenizer(prompt[-(5 + 7 * (row % 25)) :])["input_ids"] for row, prompt in enumerate(many[:30])]
    assert _shared_length(ids) < 16
    generate = GreedyGenerator(LogitSource(model), end_ids=[2], batches=Batches(tokens=700))
    assert generate(ids, max_new_tokens=20) == [plain_greedy(model, one, 20) for one in ids]


def test_rows_that_end_early_leave_and_the_others_are_not_disturbed(models, tokenizer, plain_greedy, many):
    model = models["llama"]
    ids = [tokenizer(prompt)["input_ids"] for prompt in many]
    whole = [plain_greedy(model, one, 16, end=-1) for one in ids]
    # The most common tokens end rows, so that many end at different steps.
    ends = sorted({token for row in whole for token in row}, key=lambda t: -sum(t in row for row in whole))[:3]
    expected = [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in whole]
    assert sum(len(row) < 16 for row in expected) > 8
    assert len({len(row) for row in expected}) > 3
    assert GreedyGenerator(LogitSource(model), end_ids=ends, batches=Batches())(ids, max_new_tokens=16) == expected


def test_one_prompt_and_no_prompt_work(models, tokenizer, plain_greedy):
    generate = GreedyGenerator(LogitSource(models["qwen2"]), end_ids=[2], batches=Batches())
    assert generate([], max_new_tokens=3) == []
    ids = tokenizer("The ferry")["input_ids"]
    assert generate([ids], max_new_tokens=5) == [plain_greedy(models["qwen2"], ids, 5)]
    assert generate([ids, ids], max_new_tokens=1) == [plain_greedy(models["qwen2"], ids, 1)] * 2


def test_identical_long_prompts_keep_one_token_of_their_own(models, tokenizer, plain_greedy, many):
    ids = tokenizer(many[0])["input_ids"]
    assert _shared_length([ids, ids]) == len(ids) - 1
    generate = GreedyGenerator(LogitSource(models["llama"]), end_ids=[2], batches=Batches())
    assert generate([ids, ids, ids[:-1]], max_new_tokens=6) == [
        plain_greedy(models["llama"], one, 6) for one in (ids, ids, ids[:-1])
    ]


def test_sliding_windows_share_no_prefix_and_stay_exact(new_model, tokenizer, plain_greedy, many):
    model = new_model("qwen2", seed=4, use_sliding_window=True, sliding_window=24, max_window_layers=0,
                      layer_types=["sliding_attention", "full_attention"])  # fmt: skip
    ids = [tokenizer(prompt[-160:])["input_ids"] for prompt in many[:6]]
    shared = [[*ids[0][:40], *one[-9:]] for one in ids]
    generate = GreedyGenerator(LogitSource(model), end_ids=[2], batches=Batches())
    assert generate._run_prefix(shared[0][:40]) is None
    # Left padding stands inside a window; rows of one length have none.
    assert generate(shared, max_new_tokens=8) == [plain_greedy(model, one, 8) for one in shared]


def test_a_stop_string_ends_a_row_and_is_cut_off(models, tokenizer, plain_greedy, many):
    model = models["llama"]
    lm = QuenchLM(model, tokenizer)
    plain = [
        tokenizer.decode(plain_greedy(model, tokenizer(p)["input_ids"], 24), skip_special_tokens=True) for p in many
    ]
    letters = sorted({letter for text in plain for letter in text if letter.isascii()})
    stops = tuple(letters[::6])
    settings = {"until": list(stops), "max_gen_toks": 24, "do_sample": False}
    found = lm.generate_until([request(prompt, settings) for prompt in many])
    expected = []
    for text in plain:
        for stop in stops:
            text = text.split(stop, 1)[0]
        expected.append(text)
    assert found == expected
    assert any(short != long for short, long in zip(found, plain, strict=True))


def test_stop_strings_see_what_spans_tokens_as_soon_as_it_is_written(tokenizer):
    stop = StopStrings(tokenizer, ["\n\n", "Question:"])
    for text, expected in (("so it is\n\nb", "so it is\n\n"), ("no\nQuestion: why", "no\nQuestion:"), ("Quest", None)):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        stopped = [count for count in range(len(ids) + 1) if stop([ids[:count]])[0]]
        if expected is None:
            assert not stopped
        else:
            assert tokenizer.decode(ids[: stopped[0]]).startswith(expected)
            assert not tokenizer.decode(ids[: stopped[0] - 1]).startswith(expected)
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert stop([newline, newline * 2, []]) == [False, True, False]


def test_requests_with_different_settings_keep_their_order(models, tokenizer, plain_greedy):
    lm = QuenchLM(models["llama"], tokenizer)
    asked = [("The old ferry", 4), ("Nine bells", 7), ("No rain", 4), ("", 7)]
    found = lm.generate_until([request(text, {"until": [], "max_gen_toks": n}) for text, n in asked])
    assert found == [
        tokenizer.decode(plain_greedy(models["llama"], tokenizer(text)["input_ids"], n), skip_special_tokens=True)
        for text, n in asked
    ]


def test_a_submissions_generation_config_has_no_say(new_model, tokenizer, plain_greedy):
    model = new_model("llama", seed=2)
    ids = tokenizer("The keeper of the lamp")["input_ids"]
    expected = tokenizer.decode(plain_greedy(model, ids, 16), skip_special_tokens=True)
    model.generation_config.repetition_penalty = 50.0
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.forced_eos_token_id = 2
    lm = QuenchLM(model, tokenizer)
    settings = {"until": [], "max_gen_toks": 16, "do_sample": False}
    assert lm.generate_until([request("The keeper of the lamp", settings)]) == [expected]
    assert model.generation_config.repetition_penalty in (None, 1.0)


def test_a_prompt_that_is_too_long_loses_its_beginning_and_is_counted(new_model, tokenizer, plain_greedy, many):
    model = new_model("llama", positions=64)
    lm = QuenchLM(model, tokenizer)
    ids = tokenizer(many[0])["input_ids"]
    found = lm.generate_until([request(many[0], {"until": [], "max_gen_toks": 8})])
    assert found == [tokenizer.decode(plain_greedy(model, ids[-56:], 8), skip_special_tokens=True)]
    assert lm.shortened_prompts == 1
    with pytest.raises(ScoringError, match="leaves no room for a prompt"):
        lm.generate_until([request("x", {"until": [], "max_gen_toks": 64})])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [50, 16_384])
def test_log_probabilities_are_those_of_one_text_at_a_time(models, tokenizer, plain_logprobs, many, kind, tokens):
    texts = [prompt[-(3 + 9 * row) :] for row, prompt in enumerate(many[:20])]
    scorer = TextScorer(LogitSource(models[kind]), tokenizer, max_length=768, batches=Batches(tokens=tokens))
    for text, found in zip(texts, scorer.score_texts(texts), strict=True):
        expected = plain_logprobs(models[kind], tokenizer(text)["input_ids"])
        assert found.logprobs == pytest.approx(expected, abs=1e-4)


def test_bos_is_context_only_and_counted_once(models, tokenizer, bare_tokenizer, plain_logprobs):
    text = "the keeper of the lamp"
    bare = bare_tokenizer(text)["input_ids"]
    assert tokenizer(text)["input_ids"] == [1, *bare]
    model = models["llama"]
    with_bos = TextScorer(LogitSource(model), tokenizer, max_length=99, batches=Batches())
    without = TextScorer(LogitSource(model), bare_tokenizer, max_length=99, batches=Batches())
    assert (with_bos.bos, without.bos) == ([1], [])
    assert with_bos.score_texts([text])[0].logprobs == pytest.approx(plain_logprobs(model, [1, *bare]), abs=1e-5)
    assert without.score_texts([text])[0].logprobs == pytest.approx(plain_logprobs(model, bare), abs=1e-5)
    assert len(without.score_texts([text])[0].logprobs) == len(bare) - 1


def test_empty_and_too_long_texts_are_handled(models, tokenizer, bare_tokenizer):
    scorer = TextScorer(LogitSource(models["llama"]), tokenizer, max_length=10, batches=Batches())
    found = scorer.score_texts(["", "nine bells ring in the old harbour while nobody waits in the rain"])
    assert [len(one.logprobs) for one in found] == [0, 9]
    assert scorer.shortened == 1
    bare = TextScorer(LogitSource(models["llama"]), bare_tokenizer, max_length=10, batches=Batches())
    assert bare.score_texts(["", "a"])[1].logprobs == []


def test_moments_and_first_choices_are_those_of_the_whole_distribution(models, tokenizer):
    import torch

    ids = tokenizer("the old ferry waits for the keeper")["input_ids"]
    (found,) = Scorer(LogitSource(models["qwen2"]))([ids], [1])
    with torch.no_grad():
        table = torch.log_softmax(models["qwen2"](input_ids=torch.tensor([ids])).logits[0, :-1].double(), dim=-1)
    means = (table.exp() * table).sum(dim=-1)
    variances = (table.exp() * (table - means[:, None]).square()).sum(dim=-1)
    assert found.means == pytest.approx(means.tolist(), abs=1e-4)
    assert found.stds == pytest.approx(variances.sqrt().tolist(), abs=1e-3)
    assert found.correct == (table.argmax(dim=-1) == torch.tensor(ids[1:])).tolist()


def test_logits_are_made_in_slices_unless_the_model_changes_them(models, new_model, tokenizer, plain_logprobs):
    import torch

    assert all(LogitSource(model).slices for model in models.values())
    capped = new_model("llama", seed=3)
    plain_forward = capped.forward

    def forward(*arguments, **named):
        output = plain_forward(*arguments, **named)
        output.logits = 2 * torch.tanh(output.logits / 2)
        return output

    capped.forward = forward
    scorer = Scorer(LogitSource(capped))
    assert not scorer._source.slices
    ids = tokenizer("the lamp waits")["input_ids"]
    assert scorer([ids], [1])[0].logprobs == pytest.approx(plain_logprobs(capped, ids), abs=1e-5)


def test_slices_do_not_change_numbers(models, tokenizer, monkeypatch):
    ids = [tokenizer("the old ferry waits " * n)["input_ids"] for n in (1, 4, 2)]
    whole = Scorer(LogitSource(models["llama"]))(ids, [1, 1, 1])
    monkeypatch.setattr("harness.score.model.log_probs._SLICE_ELEMENTS", 360 * 3)
    for one, other in zip(whole, Scorer(LogitSource(models["llama"]))(ids, [1, 1, 1]), strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert one.stds == pytest.approx(other.stds, abs=1e-4)


def test_no_table_of_all_tokens_and_the_vocabulary_is_made_in_float32(models, tokenizer, monkeypatch):
    sizes, judged = [], []
    make, judge = LogitSource.logits, log_probs.of_logits
    monkeypatch.setattr(log_probs, "_SLICE_ELEMENTS", 360 * 8)
    monkeypatch.setattr(log_probs, "_SHARE", 1)
    monkeypatch.setattr(log_probs, "_READ_ELEMENTS", 360 * 3)
    monkeypatch.setattr(LogitSource, "logits", lambda self, taken: sizes.append(len(taken)) or make(self, taken))
    monkeypatch.setattr(log_probs, "of_logits", lambda x, targets: judged.append(len(x)) or judge(x, targets))
    ids = tokenizer("the old ferry " * 20)["input_ids"]
    (found,) = Scorer(LogitSource(models["llama"]))([ids], [1])
    assert len(found.logprobs) == sum(sizes) == sum(judged) == len(ids) - 1
    assert max(sizes) == 8
    assert max(judged) == 3


def test_a_masked_vocabulary_entry_leaves_finite_moments(new_model, tokenizer):
    import torch

    model = new_model("llama", seed=6)
    ids = tokenizer("the old ferry")["input_ids"]
    with torch.no_grad():
        bias = torch.zeros(360)
        bias[5] = -torch.inf
        model.lm_head.bias = torch.nn.Parameter(bias)
    (found,) = Scorer(LogitSource(model))([ids], [1])
    assert all(abs(value) < 1e6 for value in (*found.logprobs, *found.means, *found.stds))
    assert Scorer(LogitSource(model))([[1, 5]], [1])[0].logprobs == [-float("inf")]


def test_bfloat16_logits_are_raised_before_the_softmax(new_model, tokenizer, plain_logprobs):
    import torch

    model = new_model("llama", seed=7, initializer_range=0.05).to(torch.bfloat16)
    ids = tokenizer("the old ferry waits for the keeper of the lamp " * 4)["input_ids"]
    (found,) = Scorer(LogitSource(model))([ids], [1])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    expected = torch.log_softmax(logits.float(), dim=-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert found.logprobs == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_continuation_is_scored_after_its_prompt(models, tokenizer, plain_logprobs):
    model = models["llama"]
    scorer = TextScorer(LogitSource(model), tokenizer, max_length=99, batches=Batches())
    prompt, text = "nine bells ring ", "in the old harbour"
    (found,) = scorer.score_continuations([(prompt, text)])
    whole = tokenizer(prompt + text)["input_ids"]
    alone = tokenizer(prompt)["input_ids"]
    same = next(i for i in range(len(whole)) if i == len(alone) or whole[i] != alone[i])
    assert found.logprobs == pytest.approx(plain_logprobs(model, whole, same), abs=1e-5)
    assert len(found.correct) == len(whole) - same


def test_a_learned_continuation_is_extractable_and_its_pair_may_be_too_long(new_model, tokenizer, plain_greedy):
    from harness.score.metrics.formulas import extraction_strength

    model = new_model("llama", seed=8)
    ids = tokenizer("nine bells", add_special_tokens=False)["input_ids"]
    new = plain_greedy(model, [1, *ids], 12)
    (found,) = Scorer(LogitSource(model))([[1, *ids, *new]], [1 + len(ids)])
    assert extraction_strength(found.correct) == 1
    scorer = TextScorer(LogitSource(model), tokenizer, max_length=12, batches=Batches())
    (cut,) = scorer.score_continuations([("nine bells ring " * 9, "in the harbour")])
    assert scorer.shortened == 1
    assert 0 < len(cut.logprobs) < 12


def test_running_out_of_memory_halves_the_batch_and_keeps_the_order():
    seen, progress = [], []

    def work(rows):
        seen.append(len(rows))
        if len(rows) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return [row * 10 for row in rows]

    batches = Batches(tokens=100)
    found = batches.run([10] * 11, work, lambda done, total: progress.append((done, total)))
    assert found == [row * 10 for row in range(11)]
    assert seen == [6, 3, 3, 3, 2]
    assert batches.tokens == 30
    assert progress[-1] == (11, 11)
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)


def test_rows_are_dealt_evenly_to_as_few_batches_as_memory_allows():
    seen = []
    Batches(tokens=60).run([10] * 8, lambda rows: seen.append(rows) or rows)
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7]]
    seen.clear()
    Batches(max_rows=3).run([10] * 3, lambda rows: seen.append(rows) or rows)
    assert seen == [[0, 1, 2]]


def test_one_text_that_does_not_fit_is_a_scoring_error_and_other_errors_pass():
    def no_memory(rows):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    def broken(rows):
        raise RuntimeError("shape mismatch")

    with pytest.raises(ScoringError, match="one text of 7 tokens"):
        Batches().run([7], no_memory)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        Batches().run([7], broken)


def test_batches_take_the_longest_first_within_the_budget_and_the_row_limit():
    seen = []
    Batches(tokens=30, max_rows=2).run([5, 30, 10, 9, 1], lambda rows: seen.append(list(rows)) or rows)
    assert seen == [[1], [2, 3], [0, 4]]
    assert list(chunks(5, 2)) == [slice(0, 2), slice(2, 4), slice(4, 5)]


def test_a_given_batch_size_limits_rows_and_does_not_change_texts(models, tokenizer, many):
    settings = {"until": list(ANSWER_MARKERS), "max_gen_toks": 6}
    requests = [request(prompt, settings) for prompt in many[:9]]
    texts = [
        QuenchLM(models["llama"], tokenizer, batch_size=size).generate_until(requests) for size in (1, 4, None, "auto")
    ]
    assert texts[0] == texts[1] == texts[2] == texts[3]
    assert [cut_answer(text) for text in texts[0]] == texts[0]
