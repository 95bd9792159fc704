"""What must not move a score: batch sizes, seeds, padding, order, training mode; and tokenizers of other shapes."""

import copy
import dataclasses
import json

import pytest

from harness.score.evaluation import evaluate, membership_auc
from harness.score.metrics.formulas import PRIMARY, auc, min_k
from harness.score.model.language_model import QuenchLM


@pytest.fixture
def run(shipped_tasks, muse_folder, tokenizer):
    def call(model, metric, *, data_dir=muse_folder, limit=None, encoder=tokenizer, seed=0, **more):
        task = f"muse_mini_{metric}"
        return evaluate(model, encoder, task, data_dir=data_dir, device="cpu", limit=limit, seed=seed, **more)

    return call


def values(evaluation):
    return {score.metric: score.value for score in evaluation.scores}


def assert_same(one, other):
    assert [d.response for d in one.documents] == [d.response for d in other.documents]
    assert [d.prompt_sha256 for d in one.documents] == [d.prompt_sha256 for d in other.documents]
    assert values(one) == pytest.approx(values(other), abs=1e-5)


def without(tokenizer, *names):
    changed = copy.deepcopy(tokenizer)
    for name in names:
        setattr(changed, name, None)
    return changed


@pytest.mark.parametrize("metric", ["verbmem_f", "knowmem_f", "privleak"])
def test_batch_size_and_seed_move_no_score(run, models, metric):
    model = models["gpt_neox"]
    plain = run(model, metric)
    for changed in ({"batch_size": 1}, {"batch_size": 3, "seed": 7}):
        assert_same(run(model, metric, **changed), plain)


@pytest.mark.parametrize("metric", ["verbmem_f", "privleak"])
def test_a_model_in_training_mode_is_scored_without_its_dropout(run, new_model, metric):
    still, dropping = (new_model("llama", seed=4, attention_dropout=0.9) for _ in range(2))
    dropping.train()
    assert_same(run(dropping, metric), run(still, metric))
    assert not dropping.training


@pytest.mark.parametrize("metric", ["verbmem_f", "knowmem_r", "privleak"])
def test_texts_in_another_order_get_the_same_scores_in_that_order(run, models, own_muse_folder, metric):
    before = run(models["llama"], metric, data_dir=own_muse_folder)
    for path in own_muse_folder.rglob("*.json"):
        if "icl" not in path.name:
            path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))[::-1]), encoding="utf-8")
    after = run(models["llama"], metric, data_dir=own_muse_folder)
    assert values(after) == pytest.approx(values(before), abs=1e-5)
    for split in {document.split for document in before.documents}:
        old, new = (
            [(d.prompt_sha256, d.response) for d in found.documents if d.split == split] for found in (before, after)
        )
        assert new == old[::-1]


def test_in_context_pairs_are_part_of_what_is_asked(run, models, own_muse_folder):
    before = run(models["llama"], "knowmem_f", data_dir=own_muse_folder)
    path = own_muse_folder / "knowmem" / "forget_qa_icl.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))[::-1]), encoding="utf-8")
    after = run(models["llama"], "knowmem_f", data_dir=own_muse_folder)
    pairs = zip(before.documents, after.documents, strict=True)
    assert all(one.prompt_sha256 != other.prompt_sha256 for one, other in pairs)


def test_forget_and_holdout_that_change_places_turn_the_auc_into_its_complement(run, models, own_muse_folder):
    before = values(run(models["qwen2"], "privleak", data_dir=own_muse_folder))
    folder = own_muse_folder / "privleak"
    (folder / "forget.json").rename(folder / "kept.json")
    (folder / "holdout.json").rename(folder / "forget.json")
    (folder / "kept.json").rename(folder / "holdout.json")
    after = values(run(models["qwen2"], "privleak", data_dir=own_muse_folder))
    for key in ("auc", "auc_loss", "auc_min_k_pp_40", "auc_zlib_loss", "auc_min_k_20"):
        assert before[key] + after[key] == pytest.approx(1)
    assert before["privleak"] == pytest.approx(-after["privleak"])
    assert before["loss_forget"] == pytest.approx(after["loss_holdout"], abs=1e-6)


def test_splits_of_unlike_sizes_take_turns_until_one_runs_out(run, models, own_muse_folder):
    (own_muse_folder / "privleak" / "forget.json").write_text('["the old ferry waits", "nine bells"]', encoding="utf-8")
    found = run(models["llama"], "privleak", data_dir=own_muse_folder)
    assert [document.split for document in found.documents] == ["forget", "holdout"] * 2 + ["holdout"] * 5
    assert [document.index for document in found.documents] == list(range(9))


def test_the_same_texts_on_both_sides_are_not_told_apart_whatever_the_model(run, models, own_muse_folder):
    folder = own_muse_folder / "privleak"
    (folder / "holdout.json").write_text((folder / "forget.json").read_text(encoding="utf-8"), encoding="utf-8")
    for model in models.values():
        found = values(run(model, "privleak", data_dir=own_muse_folder, batch_size=1))
        assert {found[key] for key in found if key.startswith("auc")} == {0.5}
        assert found["privleak"] == 0


@pytest.mark.parametrize("metric", ["verbmem_f", "privleak"])
def test_a_bfloat16_model_is_scored_in_its_own_type_and_comes_near(run, new_model, metric):
    import torch

    whole, half = new_model("llama", seed=6), new_model("llama", seed=6).to(torch.bfloat16)
    key = "reference_nll" if metric == "verbmem_f" else "loss_holdout"
    fine, coarse = (values(run(model, metric))[key] for model in (whole, half))
    assert half.dtype == torch.bfloat16
    assert coarse != fine
    assert coarse == pytest.approx(fine, rel=0.02)


def test_a_model_that_knows_the_texts_by_heart_has_full_verbmem_and_is_extractable(
    run, new_model, tokenizer, own_muse_folder
):
    """Trained on one document until it writes it down: VerbMem 1 and extraction strength 1."""
    import torch

    item = {"prompt": "The keeper of lamp", "gt": " waits for no one in rain while bells ring."}
    (own_muse_folder / "verbmem" / "forget.json").write_text(json.dumps([item]), encoding="utf-8")
    model = new_model("llama", seed=1)
    ids = torch.tensor([[*tokenizer(item["prompt"] + item["gt"])["input_ids"], 2]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    (document,) = run(model, "verbmem_f", data_dir=own_muse_folder).documents
    assert document.response == item["gt"]
    assert document.scores["verbmem_f"] == document.scores["rougeL_recall"] == 1
    assert document.scores["extraction_strength"] == 1
    assert document.scores["reference_nll"] < 0.1


@pytest.mark.parametrize("metric", ["knowmem_f", "privleak"])
def test_a_tokenizer_without_pad_scores_the_same(run, models, tokenizer, metric):
    bare = without(tokenizer, "pad_token")
    assert bare.pad_token_id is None
    assert_same(run(models["llama"], metric, encoder=bare, batch_size=4), run(models["llama"], metric, batch_size=4))


@pytest.mark.parametrize("metric", ["verbmem_f", "privleak"])
def test_a_tokenizer_without_any_special_token_scores_too(run, models, bare_tokenizer, metric):
    """Nothing ends a row then but its length, and nothing stands before a text."""
    bare = without(bare_tokenizer, "pad_token", "eos_token", "bos_token")
    found = run(models["qwen2"], metric, encoder=bare, batch_size=4)
    assert found.scores[0].value is not None
    assert all(document.invalid_reason is None for document in found.documents)
    assert "adds no BOS" in found.remarks[0]


def test_a_tokenizer_that_has_a_bos_but_never_writes_it_gets_none(models, bare_tokenizer):
    """GPT-NeoX's way: one token is BOS and EOS, and stands before nothing."""
    changed = copy.deepcopy(bare_tokenizer)
    changed.bos_token = changed.eos_token
    lm = QuenchLM(models["gpt_neox"], changed)
    assert changed.bos_token_id == changed.eos_token_id == 2
    assert lm.texts.bos == []
    ids = changed("the old ferry")["input_ids"]
    assert len(lm.texts.score_texts(["the old ferry"])[0].logprobs) == len(ids) - 1


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_that_a_tokenizer_pads_or_cuts_has_no_say(run, models, tokenizer, side):
    changed = copy.deepcopy(tokenizer)
    changed.padding_side = changed.truncation_side = side
    changed.model_max_length = 16
    assert_same(run(models["llama"], "knowmem_f", encoder=changed), run(models["llama"], "knowmem_f"))


def test_a_measured_auc_is_that_of_the_texts_one_by_one_without_bos_too(
    shipped_tasks, models, bare_tokenizer, plain_logprobs, muse_folder
):
    model = models["qwen2"]
    sides = []
    for split in ("forget", "holdout"):
        texts = json.loads((muse_folder / "privleak" / f"{split}.json").read_text(encoding="utf-8"))
        sides.append([min_k(plain_logprobs(model, bare_tokenizer(text)["input_ids"])) for text in texts])
    for batch_size in (None, 1):
        found = membership_auc(model, bare_tokenizer, "mini", data_dir=muse_folder, device="cpu", batch_size=batch_size)
        assert found == pytest.approx(auc(*sides), abs=1e-12)


def test_responses_are_whole_python_strings_and_scores_plain_floats(run, models):
    """numpy strings and arrays are cut to three dots in sample logs."""
    for metric in PRIMARY:
        for document in run(models["llama"], metric, limit=3).documents:
            assert type(document.response) is str
            assert {type(value) for value in document.scores.values()} == {float}
            assert json.loads(json.dumps(dataclasses.asdict(document)))["index"] == document.index
