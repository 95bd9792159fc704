"""Tokenizers of every shape give the oracle's scores; a vocabulary of 256,000 needs no table of all its logits."""

import random
from types import SimpleNamespace

import muse_oracle
import pytest

from harness.score.evaluation import evaluate
from harness.score.model.language_model import QuenchLM, StopStrings

TEXT = "the old ferry to orla head leaves at nine and the keeper of the lamp waits for no one in the rain"
ODD = "naïve café — 北京\t\n\n  two  spaces ✓ end"


def lines():
    rng = random.Random(3)
    words = TEXT.split()
    return [f"Question: {' '.join(rng.choices(words, k=6))}?\nAnswer: {' '.join(rng.choices(words, k=3))}.\n\n"
            for _ in range(60)]  # fmt: skip


def byte_level_bpe():
    """GPT-2's and Qwen's way."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(lines(), trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
        special_tokens=["<pad>", "<s>", "</s>"]))  # fmt: skip
    return core


BYTES = [f"<0x{number:02X}>" for number in range(256)]


def sentencepiece_bpe():
    """Llama-2's way: spaces are part of the tokens, one stands before every text, rare characters are bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])  # fmt: skip
    core.train_from_iterator(lines(), trainers.BpeTrainer(
        vocab_size=340, show_progress=False, special_tokens=["<pad>", "<s>", "</s>", "<unk>", *BYTES]))  # fmt: skip
    return core


def sentencepiece_unigram():
    """Gemma's and T5's way, with bytes for what it has no piece for."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(set("".join(lines())) - {" ", "\n"})
    pieces = [("<pad>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((byte, -12.0) for byte in BYTES)]
    pieces += [
        ("▁", -2.0),
        *((letter, -6.0) for letter in letters),
        *((f"▁{word}", -4.0) for word in sorted(set(TEXT.split()))),
    ]
    core = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return core


CORES = {"byte_level": byte_level_bpe, "sp_bpe": sentencepiece_bpe, "sp_unigram": sentencepiece_unigram}
SHAPES = [
    ("byte_level", False, False), ("sp_bpe", True, False), ("sp_unigram", True, True),
    *(pytest.param(core, bos, pad, marks=pytest.mark.slow) for core, bos, pad in (
        ("byte_level", True, True), ("sp_bpe", False, True), ("sp_unigram", False, False))),
]  # fmt: skip


def make(core_name, *, bos, pad):
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    core = CORES[core_name]()
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>" if bos else None, eos_token="</s>", pad_token="<pad>" if pad else None
    )


@pytest.fixture
def shaped(new_model):
    def call(core, bos, pad):
        tokenizer = make(core, bos=bos, pad=pad)
        return new_model("llama", seed=5, vocab_size=len(tokenizer)), tokenizer

    return call


@pytest.fixture
def run(shipped_tasks, muse_folder):
    def call(model, tokenizer, metric, limit=None):
        return evaluate(
            model, tokenizer, f"muse_mini_{metric}", data_dir=muse_folder, device="cpu", limit=limit, seed=0
        )

    return call


@pytest.mark.parametrize(("core", "bos", "pad"), SHAPES)
def test_answers_and_scores_are_the_oracle_s_with_tokenizers_of_every_shape(shaped, run, muse_folder, core, bos, pad):
    model, tokenizer = shaped(core, bos, pad)
    expected = {
        "verbmem_f": muse_oracle.verbmem(model, tokenizer, muse_folder, tokens=64, limit=3),
        "knowmem_f": muse_oracle.knowmem(model, tokenizer, muse_folder, "forget_qa", pairs=5, tokens=20, limit=4),
    }
    for metric, pairs in expected.items():
        found = run(model, tokenizer, metric, limit=len(pairs))
        assert [document.response for document in found.documents] == [response for response, _ in pairs]
        scores = [document.scores[metric] for document in found.documents]
        assert scores == pytest.approx([score for _, score in pairs], abs=1e-6)
        assert len({response for response, _ in pairs}) > 1


@pytest.mark.parametrize(("core", "bos", "pad"), SHAPES)
def test_membership_scores_are_the_oracle_s_and_the_case_of_bos_is_said(shaped, run, muse_folder, core, bos, pad):
    model, tokenizer = shaped(core, bos, pad)
    found = run(model, tokenizer, "privleak")
    assert any(("puts BOS" if bos else "adds no BOS") in remark for remark in found.remarks)
    for split in ("forget", "holdout"):
        texts = muse_oracle.read(muse_folder, "privleak", split)
        documents = [document for document in found.documents if document.split == split]
        for text, document in zip(texts, documents, strict=True):
            logprobs = muse_oracle.token_logprobs(model, tokenizer, text)
            assert document.scores["tokens"] == len(logprobs) == len(tokenizer(text)["input_ids"]) - 1
            assert document.scores["min_k_40"] == pytest.approx(muse_oracle.min_k(logprobs), abs=1e-5)


@pytest.mark.parametrize(("core", "bos", "pad"), SHAPES)
def test_characters_that_no_piece_covers_are_scored_byte_by_byte(shaped, core, bos, pad):
    model, tokenizer = shaped(core, bos, pad)
    assert len(tokenizer(ODD)["input_ids"]) > 20
    (found,) = QuenchLM(model, tokenizer).texts.score_texts([ODD])
    assert found.logprobs == pytest.approx(muse_oracle.token_logprobs(model, tokenizer, ODD), abs=1e-4)


def request(*arguments):
    return SimpleNamespace(args=arguments)


@pytest.mark.parametrize(("core", "bos", "pad"), SHAPES)
def test_stop_strings_end_a_row_where_the_oracle_cuts_it(shaped, core, bos, pad):
    """A piece may read differently at the beginning of a text: sentencepiece drops the first space."""
    model, tokenizer = shaped(core, bos, pad)
    prompts = [TEXT[: 10 + 5 * row] for row in range(8)]
    whole = [muse_oracle.continuation(model, tokenizer, prompt, 24) for prompt in prompts]
    letters = sorted({letter for text in whole for letter in text if letter.isascii() and letter.isprintable()})
    stops = letters[::7]
    settings = {"until": stops, "max_gen_toks": 24, "do_sample": False}
    expected = []
    for text in whole:
        for stop in stops:
            text = text.split(stop, 1)[0]
        expected.append(text)
    assert QuenchLM(model, tokenizer).generate_until([request(prompt, settings) for prompt in prompts]) == expected
    assert any(cut != text for cut, text in zip(expected, whole, strict=True))


def test_a_stop_string_in_bytes_counts_only_once_no_later_byte_can_make_it_unreadable(shaped):
    """Sentencepiece reads a run of bytes as a whole: one that completes no character makes all of them unreadable."""
    _, tokenizer = shaped("sp_unigram", True, True)
    line_end, half, word = (tokenizer.convert_tokens_to_ids(token) for token in ("<0x0A>", "<0xE5>", "r"))
    stop = StopStrings(tokenizer, ("\n\n",))
    answer = [word, line_end, line_end]
    assert tokenizer.decode(answer).endswith("\n\n")
    assert "\n\n" not in tokenizer.decode([*answer, half, word])
    assert stop([answer, [*answer, half], [*answer, half, word]]) == [False, False, False]
    assert stop([[*answer, word], [*answer, tokenizer.eos_token_id], [*answer, tokenizer.eos_token_id, word]]) == [
        True, False, True,
    ]  # fmt: skip


VOCABULARY = 256_000


@pytest.fixture(scope="module")
def wide(new_model):
    """A tiny model with Gemma's vocabulary, and the largest table that its output layer has made."""
    model = new_model("llama", seed=2, vocab_size=VOCABULARY, hidden_size=16, num_attention_heads=2,
                      num_key_value_heads=2, tie_word_embeddings=True)  # fmt: skip
    sizes = []
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    return model, sizes


def test_a_vocabulary_of_256_000_is_scored_in_slices_with_the_same_numbers(wide, tokenizer):
    model, sizes = wide
    text = f"{TEXT} " * 8
    count = len(tokenizer(text)["input_ids"]) - 1
    expected = muse_oracle.token_logprobs(model, tokenizer, text)
    lm = QuenchLM(model, tokenizer)
    sizes.clear()
    (found,) = lm.texts.score_texts([text])
    assert found.logprobs == pytest.approx(expected, abs=1e-4)
    assert count > 100
    assert max(sizes) <= count * VOCABULARY / 4
    assert max(sizes) <= 16_777_216, "64 MB in float32"


def test_a_vocabulary_of_256_000_is_generated_from_with_one_row_of_logits_per_prompt(wide, tokenizer, plain_greedy):
    model, sizes = wide
    prompts = [TEXT[: 20 + 7 * row] for row in range(4)]
    expected = [plain_greedy(model, tokenizer(prompt)["input_ids"], 6) for prompt in prompts]
    lm = QuenchLM(model, tokenizer)
    sizes.clear()
    found = lm.generate_until([request(prompt, {"until": [], "max_gen_toks": 6}) for prompt in prompts])
    assert found == tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert max(sizes) <= len(prompts) * VOCABULARY
