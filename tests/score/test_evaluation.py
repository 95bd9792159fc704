"""One model, one task, one Evaluation; and the same numbers by lm-eval's own route."""

import json
import logging
import math

import pytest

from harness.errors import CorpusError, ScoringError, UnknownNameError
from harness.provenance import sha256_text
from harness.score import lm_eval_hooks
from harness.score.corpora import catalogue
from harness.score.evaluation import evaluate, membership_auc
from harness.score.metrics.formulas import METRICS, PRIMARY, auc, cut_answer, min_k, privleak, rouge

GENERATION = ("verbmem_f", "knowmem_f", "knowmem_r")


@pytest.fixture
def run(shipped_tasks, muse_folder, tokenizer):
    def call(model, metric, *, corpus="mini", data_dir=muse_folder, limit=None, encoder=tokenizer, **more):
        return evaluate(model, encoder, f"muse_{corpus}_{metric}", data_dir=data_dir, device="cpu", limit=limit,
                        seed=0, **more)  # fmt: skip

    return call


def scores_of(evaluation):
    return {score.metric: score for score in evaluation.scores}


@pytest.mark.parametrize("metric", PRIMARY)
def test_an_evaluation_starts_with_its_primary_score_and_keeps_every_document(run, models, metric):
    found = run(models["llama"], metric)
    assert found.task == f"muse_mini_{metric}"
    assert found.scores[0].metric == metric
    assert found.seconds > 0
    assert len({score.metric for score in found.scores}) == len(found.scores)
    assert [document.index for document in found.documents] == list(range(len(found.documents)))
    for score in found.scores:
        assert score.metric in METRICS
        assert (score.value is None) == (score.missing_reason is not None)
        assert score.value is None or math.isfinite(score.value)
    for document in found.documents:
        assert set(document.scores) <= set(METRICS)
        assert len(document.prompt_excerpt) <= 200
        assert len(document.reference_excerpt) <= 200


ROUGE = {"rougeL_recall", "rouge1", "rouge1_recall"}
RESPONSE = {"repetition", "empty", "degenerate", "response_words"}
ATTACKS = {*(f"min_k_{k}" for k in (5, 10, 20, 30, 40, 50, 60)), "min_k_pp_40", "loss", "zlib_loss"}
SECONDARY = {
    "verbmem_f": ROUGE | RESPONSE | {"reference_nll", "extraction_strength"},
    "knowmem_f": ROUGE | RESPONSE,
    "knowmem_r": ROUGE | RESPONSE,
    "privleak": {"auc", "reference_auc", "loss_forget", "loss_holdout", "tokens"}
    | {f"auc_{key}" for key in ATTACKS - {"min_k_40"}},
}


@pytest.mark.parametrize("metric", PRIMARY)
def test_every_secondary_metric_is_stored_for_every_cell_and_described(run, models, own_muse_folder, metric):
    """Texts of at least 20 tokens, so that Min-5% has one; per document, so that intervals can be made."""
    for split in ("forget", "holdout"):
        path = own_muse_folder / "privleak" / f"{split}.json"
        texts = [text + " the old ferry waits" * 9 for text in json.loads(path.read_text(encoding="utf-8"))]
        path.write_text(json.dumps(texts), encoding="utf-8")
    found = run(models["llama"], metric, data_dir=own_muse_folder)
    assert {score.metric for score in found.scores} == SECONDARY[metric] | {metric}
    assert all(score.value is not None for score in found.scores)
    kept = ATTACKS | {"tokens"} if metric == "privleak" else SECONDARY[metric] | {metric}
    assert all(set(document.scores) == kept for document in found.documents)
    assert (SECONDARY[metric] | kept) <= set(METRICS)


def test_the_metric_table_describes_nothing_that_no_cell_holds():
    held = set().union(*SECONDARY.values(), PRIMARY, ATTACKS)
    assert set(METRICS) == held


def test_an_evaluation_is_plain_data(run, models):
    from dataclasses import asdict

    for metric in PRIMARY:
        json.dumps(asdict(run(models["qwen2"], metric, limit=4)), allow_nan=False)


@pytest.mark.parametrize("metric", GENERATION)
@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_stock_lm_eval_gives_the_same_scores_and_answers(
    run, models, tokenizer, muse_folder, shipped_tasks, metric, kind
):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    ours = run(models[kind], metric)
    name = f"muse_mini_{metric}"
    metadata = {"tokenizer": lm_eval_hooks.SharedTokenizer(tokenizer), "data_dir": str(muse_folder)}
    manager = TaskManager(include_path=str(shipped_tasks), include_defaults=False, metadata=metadata)
    stock = HFLM(pretrained=models[kind], tokenizer=tokenizer, batch_size=1)
    theirs = lm_eval.simple_evaluate(stock, tasks=[name], task_manager=manager, bootstrap_iters=0)
    for score in ours.scores:
        if score.metric not in ("reference_nll", "extraction_strength"):
            assert score.value == pytest.approx(theirs["results"][name][f"{score.metric},none"], abs=1e-12)
    samples = sorted(theirs["samples"][name], key=lambda sample: sample["doc_id"])
    cut = cut_answer if metric != "verbmem_f" else str
    assert [document.response for document in ours.documents] == [cut(s["resps"][0][0]) for s in samples]


def test_verbmem_is_the_mean_rouge_of_the_plain_loop(run, models, tokenizer, plain_greedy, muse_folder):
    model = models["qwen2"]
    items = json.loads((muse_folder / "verbmem" / "forget.json").read_text(encoding="utf-8"))
    expected = []
    for item in items:
        new = plain_greedy(model, tokenizer(item["prompt"])["input_ids"], 64)
        reference = tokenizer.decode(tokenizer(item["gt"])["input_ids"][:64], skip_special_tokens=True)
        expected.append(rouge(reference, tokenizer.decode(new, skip_special_tokens=True)).rouge_l)
    found = run(model, "verbmem_f")
    assert [document.scores["verbmem_f"] for document in found.documents] == pytest.approx(expected, abs=1e-12)
    assert found.scores[0].value == pytest.approx(sum(expected) / len(expected), abs=1e-12)


def test_privleak_is_that_of_one_text_at_a_time(run, models, tokenizer, plain_logprobs, muse_folder):
    model = models["gpt_neox"]
    sides = {}
    for split in ("forget", "holdout"):
        texts = json.loads((muse_folder / "privleak" / f"{split}.json").read_text(encoding="utf-8"))
        sides[split] = [min_k(plain_logprobs(model, tokenizer(text)["input_ids"])) for text in texts]
    found = scores_of(run(model, "privleak"))
    value = auc(sides["forget"], sides["holdout"])
    assert found["auc"].value == pytest.approx(value, abs=1e-12)
    assert found["privleak"].value == pytest.approx(privleak(value, 0.5), abs=1e-9)
    assert found["privleak"].num_docs == 16
    assert {f"auc_min_k_{k}" for k in (5, 10, 20, 30, 50, 60)} <= set(found)
    assert {"auc_loss", "auc_zlib_loss", "auc_min_k_pp_40", "loss_forget", "loss_holdout", "tokens"} <= set(found)


def test_privleak_documents_carry_what_resampling_needs(run, models):
    found = run(models["llama"], "privleak")
    sides = [[d.scores["min_k_40"] for d in found.documents if d.split == s] for s in ("forget", "holdout")]
    assert auc(*sides) == scores_of(found)["auc"].value
    assert all(document.response == "" and document.reference_sha256 is None for document in found.documents)


def test_the_reference_auc_can_be_measured_where_there_is_none(run, models, tokenizer, muse_folder, edit_corpus):
    measured = membership_auc(models["llama"], tokenizer, "mini", data_dir=muse_folder, device="cpu")
    edit_corpus("mini", reference_auc=None)
    assert membership_auc(models["llama"], tokenizer, "mini", data_dir=muse_folder, device="cpu") == measured
    with pytest.raises(CorpusError, match="no usable reference AUC"):
        run(models["llama"], "privleak")
    edit_corpus("mini", reference_auc=measured)
    assert run(models["llama"], "privleak").scores[0].value == 0


def test_a_limit_takes_the_first_documents_and_both_splits(run, models):
    whole, part = run(models["llama"], "privleak"), run(models["llama"], "privleak", limit=5)
    assert [document.split for document in part.documents] == ["forget", "holdout", "forget", "holdout", "forget"]
    for one, other in zip(part.documents, whole.documents, strict=False):
        assert one.prompt_sha256 == other.prompt_sha256
        assert one.scores == pytest.approx(other.scores, abs=1e-5)
    assert part.scores[0].value is not None
    assert len(run(models["llama"], "verbmem_f", limit=2).documents) == 2
    assert len(run(models["llama"], "knowmem_r", limit=99).documents) == 11


def test_a_limit_of_one_has_no_holdout_text_and_says_so(run, models):
    found = run(models["llama"], "privleak", limit=1)
    assert found.scores[0].value is None
    assert found.scores[0].missing_reason == "none of the 0 holdout texts is valid"
    assert scores_of(found)["loss_forget"].value is not None
    assert scores_of(found)["loss_holdout"].missing_reason == "no valid holdout text"


def test_a_text_that_is_too_short_is_invalid_and_does_not_count(run, models, own_muse_folder):
    path = own_muse_folder / "privleak" / "holdout.json"
    texts = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(["", "a", *texts]), encoding="utf-8")
    found = run(models["llama"], "privleak", data_dir=own_muse_folder)
    invalid = [document for document in found.documents if document.invalid_reason]
    assert [document.index for document in invalid] == [1, 3]
    assert "needs at least 3" in invalid[0].invalid_reason
    assert invalid[0].scores == {}
    assert found.scores[0].num_docs == 16


def test_a_split_without_a_valid_text_gives_no_number_but_a_reason(run, models, own_muse_folder, tokenizer):
    (own_muse_folder / "privleak" / "forget.json").write_text('["a", ""]', encoding="utf-8")
    found = run(models["llama"], "privleak", data_dir=own_muse_folder)
    assert found.scores[0].value is None
    assert "none of the 2 forget texts is valid (the first: item 0 of privleak/" in found.scores[0].missing_reason
    assert scores_of(found)["auc"].value is None
    with pytest.raises(ScoringError, match="none of the 2 forget texts"):
        membership_auc(models["llama"], tokenizer, "mini", data_dir=own_muse_folder, device="cpu")


@pytest.mark.parametrize("metric", PRIMARY)
def test_a_broken_model_scores_nothing_rather_than_crashing(run, new_model, metric):
    import torch

    model = new_model("llama", seed=9)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    found = run(model, metric)
    scores = scores_of(found)
    if metric == "privleak":
        assert scores["privleak"].value is None
        assert "log-probabilities are not finite" in scores["privleak"].missing_reason
        assert all(document.invalid_reason for document in found.documents)
    else:
        assert scores[metric].value == 0
        assert scores[metric].num_docs == len(found.documents)
    if metric == "verbmem_f":
        assert scores["reference_nll"].value is None
        assert scores["reference_nll"].missing_reason == "no document has a finite reference_nll"


def test_verbmem_carries_what_the_model_thinks_of_the_references(run, models, tokenizer, plain_logprobs, muse_folder):
    model = models["llama"]
    found = run(model, "verbmem_f")
    item = json.loads((muse_folder / "verbmem" / "forget.json").read_text(encoding="utf-8"))[0]
    ids = tokenizer(item["gt"])["input_ids"][:64]
    whole = tokenizer(item["prompt"] + tokenizer.decode(ids, skip_special_tokens=True))["input_ids"]
    alone = tokenizer(item["prompt"])["input_ids"]
    same = next(i for i in range(len(whole)) if i == len(alone) or whole[i] != alone[i])
    expected = -sum(plain_logprobs(model, whole, same)) / (len(whole) - same)
    assert found.documents[0].scores["reference_nll"] == pytest.approx(expected, abs=1e-4)
    assert 0 <= found.documents[0].scores["extraction_strength"] <= 1
    assert {"reference_nll", "extraction_strength"} <= set(scores_of(found))


def test_excerpts_are_short_and_digests_whole(run, models, own_muse_folder):
    long = "the old ferry waits " * 30
    (own_muse_folder / "verbmem" / "forget.json").write_text(
        json.dumps([{"prompt": long + "now ", "gt": long}]), encoding="utf-8"
    )
    (document,) = run(models["llama"], "verbmem_f", data_dir=own_muse_folder).documents
    assert document.prompt_excerpt == (long + "now ")[-200:]
    assert document.prompt_sha256 == sha256_text(long + "now ")
    assert long.startswith(document.reference_excerpt)
    assert len(document.reference_excerpt) <= 200
    text = run(models["llama"], "privleak", data_dir=own_muse_folder).documents[0]
    assert text.prompt_excerpt == json.loads((own_muse_folder / "privleak/forget.json").read_text())[0][:200]


def test_the_case_of_bos_is_said(run, models, bare_tokenizer):
    assert run(models["llama"], "privleak").remarks == (
        "The tokenizer puts BOS before each text; BOS is context only.",
    )
    (remark,) = run(models["llama"], "privleak", encoder=bare_tokenizer).remarks
    assert "adds no BOS" in remark


def test_shortened_texts_and_foreign_texts_are_said(run, new_model, edit_corpus):
    edit_corpus("mini", data_sha256="0" * 64)
    remarks = " ".join(run(new_model("llama", positions=40), "privleak").remarks)
    assert "texts were cut to the model's context of 40 tokens" in remarks
    assert "measured on the corpus's own texts" in remarks


def test_progress_counts_documents_up_to_all_of_them(run, models):
    for metric, total in (("knowmem_f", 14), ("privleak", 16)):
        seen = []
        run(models["llama"], metric, batch_size=3, on_progress=lambda done, all_: seen.append((done, all_)))  # noqa: B023
        assert seen[-1] == (total, total)
        assert seen == sorted(seen)
        assert len(seen) > 3


def test_nothing_is_printed_and_lm_evals_logger_is_left_as_it_was(run, models, capfd):
    import lm_eval.api.task
    from tqdm import tqdm

    logging.getLogger("lm_eval").setLevel(logging.INFO)
    for metric in PRIMARY:
        run(models["llama"], metric, limit=2)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert logging.getLogger("lm_eval").level == logging.INFO
    assert lm_eval.api.task.tqdm is tqdm


def test_two_models_after_each_other_get_their_own_answers(run, models):
    first = run(models["llama"], "knowmem_f")
    other = run(models["qwen2"], "knowmem_f")
    again = run(models["llama"], "knowmem_f")
    assert [d.response for d in first.documents] == [d.response for d in again.documents]
    assert [d.response for d in first.documents] != [d.response for d in other.documents]


def test_the_environment_does_not_move_what_is_scored(run, models, muse_folder, own_muse_folder, monkeypatch):
    (own_muse_folder / "verbmem" / "forget.json").write_text('[{"prompt": "a", "gt": "b"}]', encoding="utf-8")
    monkeypatch.setenv("QUENCH_DATA_DIR", str(own_muse_folder))
    assert len(run(models["llama"], "verbmem_f", data_dir=None, limit=7).documents) == 7
    assert len(run(models["llama"], "verbmem_f").documents) == 6


def test_unknown_tasks_and_groups_are_refused(models, tokenizer):
    with pytest.raises(UnknownNameError, match="did you mean"):
        evaluate(models["llama"], tokenizer, "muse_mini", data_dir=None, device="cpu", limit=None, seed=0)


def test_a_task_file_that_lm_eval_passes_over_is_noticed(run, models, shipped_tasks):
    path = shipped_tasks / "muse_mini" / "verbmem_f.yaml"
    path.write_text(
        path.read_text(encoding="utf-8").replace("task: muse_mini_verbmem_f", "task: other"), encoding="utf-8"
    )
    with pytest.raises(ScoringError, match="lm-eval can't load"):
        run(models["llama"], "verbmem_f")


def test_a_small_part_of_real_news_runs_when_it_is_there(models, tokenizer, new_model):
    import os
    from pathlib import Path

    folder = os.environ.get("QUENCH_REAL_DATA")
    if not folder:
        pytest.skip("QUENCH_REAL_DATA names no folder with MUSE NEWS in its local form")
    model = new_model("llama", positions=8192)
    for task in catalogue.load_corpus("news").tasks:
        found = evaluate(model, tokenizer, task, data_dir=Path(folder), device="cpu", limit=2, seed=0)
        assert len(found.documents) == 2
        assert found.scores[0].value is not None
