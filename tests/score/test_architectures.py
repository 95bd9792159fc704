"""Other models' ways: windows, caps, scales, ALiBi and learned positions give the plain loop's numbers too."""

import pytest
from tiny_architectures import model_of

from harness.score.evaluation import evaluate
from harness.score.model.generation import GreedyGenerator, _shared_length
from harness.score.model.language_model import QuenchLM
from harness.score.model.logits import LogitSource
from harness.submit.scan.architectures import MODEL_TYPES

SPOKEN = (
    "the old ferry to orla head leaves at nine and keeper of lamp waits for no one in rain while harbour bells ring "
)
COMMON = {
    "vocab_size": 360, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 768, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GEMMA = {"num_key_value_heads": 2, "head_dim": 8}
KINDS = {
    # name: config class, its own settings, whether keys and values of a shared beginning can be copied
    "mistral": ("MistralConfig", {"num_key_value_heads": 2, "sliding_window": None}, True),
    "mistral_windowed": ("MistralConfig", {"num_key_value_heads": 2, "sliding_window": 24}, False),
    "gemma": ("GemmaConfig", GEMMA, True),
    "gemma2_capped": ("Gemma2Config", GEMMA | {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}, True),
    "gemma3_windowed": ("Gemma3TextConfig", GEMMA | {"sliding_window": 16}, False),
    "qwen3": ("Qwen3Config", GEMMA, True),
    "granite_scaled": ("GraniteConfig", {"num_key_value_heads": 2, "logits_scaling": 3.0}, True),
    "gpt2_learned_positions": ("GPT2Config", {}, True),
    "opt_offset_positions": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32}, True),
    "bloom_alibi": ("BloomConfig", {}, False),
}

QUICK = ("mistral_windowed", "gemma2_capped", "gpt2_learned_positions", "bloom_alibi")
ALL = [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


@pytest.fixture(scope="module")
def zoo():
    """Each kind's random model, made when it is first asked for."""
    import torch
    import transformers

    made = {}

    def get(kind):
        if kind not in made:
            name, settings, _ = KINDS[kind]
            torch.set_num_threads(1)
            torch.manual_seed(0)
            config = getattr(transformers, name)(**(COMMON | settings))
            made[kind] = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        return made[kind]

    return get


@pytest.mark.parametrize("kind", ALL)
def test_prompts_of_many_lengths_in_one_batch_give_the_plain_loop_s_tokens(zoo, tokenizer, plain_greedy, kind):
    model = zoo(kind)
    ids = [tokenizer(SPOKEN[: 3 + 9 * row])["input_ids"] for row in range(10)]
    expected = [plain_greedy(model, one, 9) for one in ids]
    assert len({tuple(row) for row in expected}) > 5
    lm = QuenchLM(model, tokenizer)
    answers = lm.generate_until([_request(SPOKEN[: 3 + 9 * row], 9) for row in range(10)])
    assert answers == tokenizer.batch_decode(expected, skip_special_tokens=True)


def _request(text, length):
    from types import SimpleNamespace

    return SimpleNamespace(args=(text, {"until": [], "max_gen_toks": length, "do_sample": False}))


@pytest.mark.parametrize("kind", ALL)
def test_a_shared_beginning_is_copied_where_it_can_be_and_changes_no_token(zoo, tokenizer, plain_greedy, kind):
    from harness.score.model.batching import Batches

    model = zoo(kind)
    ids = [tokenizer(SPOKEN + end)["input_ids"] for end in ("nine", "x", "the keeper of the lamp", "so")]
    shared = _shared_length(ids)
    assert shared >= 16
    generate = GreedyGenerator(LogitSource(model), end_ids=[2], batches=Batches())
    assert (generate._run_prefix(ids[0][:shared]) is not None) == KINDS[kind][2]
    assert generate(ids, max_new_tokens=8) == [plain_greedy(model, one, 8) for one in ids]


@pytest.mark.parametrize("kind", ALL)
def test_log_probabilities_of_a_batch_are_those_of_each_text_alone(zoo, tokenizer, plain_logprobs, kind):
    model = zoo(kind)
    lm = QuenchLM(model, tokenizer)
    texts = [SPOKEN[: 3 + 9 * row] for row in range(10)]
    for text, found in zip(texts, lm.texts.score_texts(texts), strict=True):
        assert found.logprobs == pytest.approx(plain_logprobs(model, tokenizer(text)["input_ids"]), abs=1e-4)
    assert lm.texts._score._source.slices == (kind not in ("gemma2_capped", "granite_scaled"))


@pytest.mark.parametrize("kind", ["gemma2_capped"])
@pytest.mark.parametrize("metric", ["verbmem_f", "knowmem_f", "privleak"])
def test_a_whole_evaluation_of_another_architecture_has_its_primary_score(
    shipped_tasks, muse_folder, tokenizer, zoo, kind, metric
):
    found = evaluate(zoo(kind), tokenizer, f"muse_mini_{metric}", data_dir=muse_folder, device="cpu", limit=4, seed=0)
    assert found.scores[0].metric == metric
    assert found.scores[0].value is not None
    assert len(found.documents) == found.scores[0].num_docs == 4


FEW = ("gpt_neox", "olmo2", "phi", "smollm3")
LISTED = [kind if kind in FEW else pytest.param(kind, marks=pytest.mark.slow) for kind in MODEL_TYPES]


@pytest.mark.parametrize("kind", LISTED)
def test_each_architecture_of_the_list_scores_as_transformers_alone_computes(
    tokenizer, plain_greedy, plain_logprobs, kind
):
    model = model_of(kind)
    texts = [SPOKEN[: 3 + 25 * row] for row in range(5)]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    lm = QuenchLM(model, tokenizer)
    for row, found in zip(ids, lm.texts.score_texts(texts), strict=True):
        assert found.logprobs == pytest.approx(plain_logprobs(model, row), abs=1e-4)
    answers = lm.generate_until([_request(text, 9) for text in texts])
    expected = [plain_greedy(model, row, 9) for row in ids]
    assert len({tuple(row) for row in expected}) > 1
    assert answers == tokenizer.batch_decode(expected, skip_special_tokens=True)
