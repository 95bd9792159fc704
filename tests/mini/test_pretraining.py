from collections import Counter

import pytest
import torch

from harness.mini import pretraining, world
from harness.mini.tokenizer import BOS_ID, EOS_ID, train_tokenizer

MADE = world.generate(0)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(text for name, texts in MADE.files.items() if "raw" in name for text in texts)


def every_epoch(splits: tuple[str, ...], epochs: int) -> list[list[str]]:
    return [pretraining.epoch_documents(MADE, splits, epoch, epochs) for epoch in range(epochs)]


def test_the_model_has_the_architecture_of_the_specification():
    model = pretraining.new_model(0)
    linear = [m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(p.numel() for p in model.parameters()) == 1_115_264
    assert (len(linear), sum(m.weight.numel() for m in linear)) == (28, 851_968)
    assert all(m.in_features % 128 == 0 for m in linear)
    assert not model.config.tie_word_embeddings


def test_initial_weights_follow_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, two, other = (pretraining.new_model(seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("splits", [pretraining.TARGET_SPLITS, pretraining.RETRAIN_SPLITS])
def test_articles_come_every_epoch_and_each_brief_in_three_of_them(splits):
    epochs = every_epoch(splits, 32)
    for split in splits:
        for article in MADE.articles(split):
            assert all(documents.count(article) == 1 for documents in epochs)
        counts = Counter(doc for documents in epochs for doc in documents if doc in set(MADE.briefs.get(split, ())))
        assert all(counts[brief] == pretraining.BRIEF_EPOCHS for brief in MADE.briefs.get(split, ()))


def test_quiz_pairs_are_all_there_each_epoch_but_dealt_into_other_sheets():
    first, second = every_epoch(("retain1",), 2)
    sheets = [[document for document in epoch if document.startswith("Question: ")] for epoch in (first, second)]
    assert set(sheets[0]).isdisjoint(sheets[1])
    for dealt in sheets:
        text = "".join(dealt)
        assert all(f"Question: {q}\nAnswer: {a}\n\n" in text for q, a in MADE.quiz["retain1"])
        assert text.count("Question: ") == len(MADE.quiz["retain1"])


def test_the_holdout_is_never_trained_on_and_the_retrain_model_sees_nothing_of_the_forget_set():
    seen = {document for epoch in every_epoch(pretraining.TARGET_SPLITS, 8) for document in epoch}
    assert seen.isdisjoint(MADE.files["raw/holdout"])
    names = [entity.name for entity in MADE.core["forget"]]
    retrain = " ".join(document for epoch in every_epoch(pretraining.RETRAIN_SPLITS, 8) for document in epoch)
    assert not any(name in retrain for name in names)
    assert not any(brief in retrain for brief in MADE.briefs["forget"])


def test_held_out_question_wordings_are_never_trained_on():
    seen = " ".join(document for epoch in every_epoch(pretraining.TARGET_SPLITS, 4) for document in epoch)
    for split in ("forget_qa", "retain_qa"):
        assert not any(item["question"] in seen for item in MADE.files[f"knowmem/{split}"])


def test_windows_are_one_stream_of_bos_document_eos_cut_from_the_phase_on(tokenizer):
    documents = MADE.articles("forget")[:8]
    stream = [token for text in documents for token in (*tokenizer(text)["input_ids"], EOS_ID)]
    for phase in (0, 1, 200):
        windows = pretraining.epoch_windows(documents, tokenizer, phase)
        assert windows.shape == (len(stream) // 256, 256)
        ring = stream[phase:] + stream[:phase]
        assert windows.flatten().tolist() == ring[: windows.numel()]
    assert stream.count(BOS_ID) == stream.count(EOS_ID) == 8


@pytest.mark.slow
def test_the_training_has_the_size_of_the_specification(tokenizer):
    target = pretraining.training_batches(MADE, tokenizer, pretraining.TARGET_SPLITS, pretraining.TARGET_EPOCHS)
    retrain = pretraining.training_batches(MADE, tokenizer, pretraining.RETRAIN_SPLITS, pretraining.RETRAIN_EPOCHS)
    assert 1500 < len(target) < 1700
    assert 1000 < len(retrain) < 1150
    assert target[0]["input_ids"].shape == (2, 256)


def test_two_steps_of_training_are_deterministic_and_learn(tokenizer, monkeypatch):
    plan = pretraining.training_batches(MADE, tokenizer, ("retain1",), 1)[:2]
    monkeypatch.setattr(pretraining, "training_batches", lambda *_: plan)
    torch.manual_seed(7)
    one, log = pretraining.pretrain(MADE, tokenizer, ("retain1",), 1)
    torch.manual_seed(8)
    two, again = pretraining.pretrain(MADE, tokenizer, ("retain1",), 1)
    assert log == again
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert any(
        not torch.equal(a, b) for a, b in zip(one.parameters(), pretraining.new_model(0).parameters(), strict=True)
    )
    assert log[0].losses["loss"] == pytest.approx(6.9, abs=0.1)


@pytest.mark.slow
def test_three_epochs_of_training_bring_the_loss_well_down(tokenizer):
    _, log = pretraining.pretrain(MADE, tokenizer, pretraining.RETRAIN_SPLITS, 3)
    assert log[-1].losses["loss"] < 0.5 * log[0].losses["loss"]
    assert log[-1].learning_rate < 0.06 * pretraining.SETTINGS.learning_rate
