"""Reading and rescoring the logs of muse_bench and OpenUnlearning: exact figures, and faults with their place."""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import logged_runs as runs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import InputError
from harness.provenance import sha256_text
from harness.records import Evaluation
from harness.rescore import corpus_match, muse_bench, open_unlearning, recompute
from harness.rescore import files as log_files
from harness.rescore import find as log_finder
from harness.rescore.records import LoggedMetric, LoggedModel
from harness.score.corpora import catalogue

BOOKS_AUC = 0.5393
RESPONSES = ("verbmem_f", "knowmem_f", "knowmem_r")


def model_in(path: Path) -> LoggedModel:
    (model,) = log_finder.find([path])
    return model


def log_of(model: LoggedModel, metric: str) -> LoggedMetric:
    return next(log for log in model.metrics if log.metric == metric)


def rescored(model: LoggedModel, metric: str) -> Evaluation:
    return recompute.rescore(model, log_of(model, metric), catalogue.load_corpus("books"))


def scores(evaluation: Evaluation) -> dict[str, float | None]:
    return {score.metric: score.value for score in evaluation.scores}


def test_a_folder_of_muse_bench_gives_the_scores_that_its_responses_have(tmp_path: Path) -> None:
    model = model_in(runs.muse_bench(tmp_path / "npo"))
    assert (model.name, model.family) == ("npo", "muse_bench")
    assert [log.metric for log in model.metrics] == [*RESPONSES, "privleak"]
    for metric in RESPONSES:
        known = runs.KNOWN[metric]
        evaluation = rescored(model, metric)
        assert evaluation.task == f"muse_books_{metric}"
        found = scores(evaluation)
        assert found[metric] == pytest.approx(runs.mean([runs.f1(count) for count in known]), abs=1e-12)
        assert found["rougeL_recall"] == pytest.approx(sum(known) / 10 / len(known), abs=1e-12)
        assert found["response_words"] == sum(known) / len(known)
        assert found["empty"] == known.count(0) / len(known)
        assert [document.scores[metric] for document in evaluation.documents] == pytest.approx(
            [runs.f1(count) for count in known], abs=1e-12
        )


def test_privleak_is_the_auc_over_min_40_against_the_reference_of_the_corpus(tmp_path: Path) -> None:
    found = scores(rescored(model_in(runs.muse_bench(tmp_path / "npo")), "privleak"))
    # Of 12 pairs the holdout score is lower in three (all with 5.0) and the same in two (2.0 with 2.0).
    assert found["auc"] == pytest.approx((3 + 2 / 2) / 12, abs=1e-12) == runs.auc(runs.FORGET, runs.HOLDOUT)
    assert found["privleak"] == pytest.approx(100 * (4 / 12 - BOOKS_AUC) / BOOKS_AUC, abs=1e-9)
    assert found["auc_min_k_5"] == found["auc_min_k_60"] == found["auc"]
    assert found["loss_forget"] == pytest.approx(0.8 * runs.mean(runs.FORGET))
    assert found["loss_holdout"] == pytest.approx(0.8 * runs.mean(runs.HOLDOUT))


def test_texts_take_turns_and_retain_texts_are_not_read(tmp_path: Path) -> None:
    documents = rescored(model_in(runs.muse_bench(tmp_path / "npo")), "privleak").documents
    assert [document.split for document in documents] == ["forget", "holdout"] * 3 + ["forget"]
    assert [document.index for document in documents] == list(range(7))
    assert documents[1].prompt_sha256 == sha256_text(runs.text("holdout", 0))
    length = len(zlib.compress(runs.text("forget", 0).encode()))
    assert documents[0].scores["zlib_loss"] == pytest.approx(0.8 * runs.FORGET[0] / length)


def test_a_record_keeps_response_digests_and_excerpts(tmp_path: Path) -> None:
    document = rescored(model_in(runs.muse_bench(tmp_path / "npo")), "knowmem_f").documents[2]
    assert document.response == " ".join(runs.TEN[:5])
    assert document.split == "forget_qa"
    assert document.prompt_sha256 == sha256_text(runs.prompt("knowmem_f", 2))
    assert document.prompt_excerpt == runs.prompt("knowmem_f", 2)[-200:]
    assert document.reference_sha256 == sha256_text(runs.REFERENCE)


def test_knowmem_answers_are_cut_where_scoring_cuts_them_and_verbmem_is_not(tmp_path: Path) -> None:
    folder = runs.muse_bench(tmp_path / "npo")
    for metric in ("knowmem_f", "verbmem_f"):
        entry = runs.entries(metric, [10])[0] | {"response": f"{runs.REFERENCE}\n\nQuestion: and more of the same"}
        runs.write(folder / metric / "log.json", [entry])
    model = model_in(folder)
    assert scores(rescored(model, "knowmem_f"))["knowmem_f"] == 1.0
    assert rescored(model, "knowmem_f").documents[0].response == runs.REFERENCE
    assert rescored(model, "verbmem_f").documents[0].response.endswith("more of the same")
    assert (scores(rescored(model, "verbmem_f"))["verbmem_f"] or 0) < 0.8


def test_a_score_that_is_not_finite_makes_its_text_invalid_and_nothing_else(tmp_path: Path) -> None:
    folder = runs.muse_bench(tmp_path / "npo", forget=(1.0, math.nan, 2.0, 5.0), summaries=False)
    assert "NaN" in (folder / "privleak" / "log.json").read_text()
    evaluation = rescored(model_in(folder), "privleak")
    invalid = [document for document in evaluation.documents if document.invalid_reason is not None]
    assert [(document.index, document.scores) for document in invalid] == [(2, {})]
    assert scores(evaluation)["auc"] == pytest.approx(runs.auc((1.0, 2.0, 5.0), runs.HOLDOUT))
    assert all(math.isfinite(value) for document in evaluation.documents for value in document.scores.values())


def test_without_a_valid_text_there_is_a_reason_instead_of_a_number(tmp_path: Path) -> None:
    folder = runs.muse_bench(tmp_path / "npo", holdout=(math.nan, math.inf), summaries=False)
    (first, *_) = rescored(model_in(folder), "privleak").scores
    assert first.value is None
    assert first.missing_reason is not None
    assert "none of the 2 holdout texts is valid (the first: the log gives nan" in first.missing_reason


def test_numbers_that_no_model_gives_are_invalid_and_never_overflow(tmp_path: Path) -> None:
    folder = runs.muse_bench(tmp_path / "npo", forget=(1.7e308, 1.7e308, 2.0), summaries=False)
    evaluation = rescored(model_in(folder), "privleak")
    assert evaluation.documents[0].invalid_reason == "the log gives 1.7e+308 as its Min-40% score"
    assert scores(evaluation)["loss_forget"] == pytest.approx(1.6)


def test_a_perplexity_where_a_loss_is_expected_is_left_out(tmp_path: Path) -> None:
    folder = runs.muse_bench(tmp_path / "npo")
    log = json.loads((folder / "privleak" / "log.json").read_text())
    log["holdout"][0]["PPL"] = math.exp(log["holdout"][0]["PPL"]) * 3
    runs.write(folder / "privleak" / "log.json", log)
    found = scores(rescored(model_in(folder), "privleak"))
    assert "loss_forget" in found
    assert "loss_holdout" not in found
    assert "auc_loss" not in found


def test_open_unlearning_gives_the_same_scores_from_the_same_responses(tmp_path: Path) -> None:
    path = runs.write(tmp_path / "my-run" / "evals" / "MUSE_EVAL.json", runs.evaluation())
    other, own = model_in(path), model_in(runs.muse_bench(tmp_path / "npo"))
    assert (other.name, other.family, other.not_recomputed) == ("my-run", "OpenUnlearning", ())
    for metric in RESPONSES:
        assert scores(rescored(other, metric)) == scores(rescored(own, metric))
    for key in ("privleak", "auc"):
        assert scores(rescored(other, "privleak"))[key] == scores(rescored(own, "privleak"))[key]
    log = log_of(other, "privleak")
    assert log.stated_auc == pytest.approx(runs.auc(runs.FORGET, runs.HOLDOUT))
    assert {document.prompt_sha256 for document in rescored(other, "privleak").documents} == {""}
    assert "references to 128 tokens" in " ".join(rescored(other, "verbmem_f").remarks)


def test_documents_of_open_unlearning_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    value = runs.evaluation()
    part = value["forget_knowmem_ROUGE"]["value_by_index"]
    value["forget_knowmem_ROUGE"]["value_by_index"] = {"10": part["3"], "2": part["0"], "9": part["1"]}
    documents = rescored(model_in(runs.write(tmp_path / "m" / "MUSE_EVAL.json", value)), "knowmem_f").documents
    assert [document.index for document in documents] == [2, 9, 10]
    assert [document.scores["knowmem_f"] for document in documents] == pytest.approx([0.0, 1.0, runs.f1(1)])


def test_rouge_with_a_stemmer_counts_only_where_the_log_is_checked(tmp_path: Path) -> None:
    value = runs.evaluation()
    entry = value["retain_knowmem_ROUGE"]["value_by_index"]["0"]
    entry |= {"ground_truth": "the dogs were running", "generation": "the dog was running"}
    model = model_in(runs.write(tmp_path / "m" / "MUSE_EVAL.json", value))
    evaluation = rescored(model, "knowmem_r")
    assert evaluation.documents[0].scores["knowmem_r"] == pytest.approx(2 / 4)
    assert recompute.by_its_own_rule(log_of(model, "knowmem_r"), evaluation)[0] == pytest.approx(3 / 4)


def test_a_summary_without_documents_is_said_to_be_one(tmp_path: Path) -> None:
    value = runs.evaluation(mia_min_k={"agg_value": 0.3}, forget_knowmem_ROUGE={"agg_value": 0.4})
    model = model_in(runs.write(tmp_path / "m" / "MUSE_EVAL.json", value))
    assert [log.metric for log in model.metrics] == ["verbmem_f", "knowmem_r"]
    assert [sentence.partition(":")[0] for sentence in model.not_recomputed] == ["knowmem_f", "privleak"]


def test_summaries_are_read_where_programs_write_them(tmp_path: Path) -> None:
    runs.muse_bench(tmp_path / "a")
    runs.muse_bench(tmp_path / "b", summaries=False)
    runs.write(tmp_path / "out.csv", "name,verbmem_f,privleak,knowmem_f,knowmem_r\nb,12.5,-3.5,nan,\na,99,1,2,3\n")
    runs.write(tmp_path / "other.csv", "b\x00,,\n")
    first, second = log_finder.find([tmp_path])
    assert log_of(first, "verbmem_f").stated == pytest.approx(runs.mean([runs.f1(k) for k in runs.KNOWN["verbmem_f"]]))
    assert log_of(first, "privleak").stated == 1.0
    assert log_of(second, "verbmem_f").stated == 0.125
    assert log_of(second, "privleak").stated == -3.5
    assert math.isnan(log_of(second, "knowmem_f").stated or 0)
    assert log_of(second, "knowmem_r").stated is None


def test_models_are_found_in_folders_of_many_and_each_once(tmp_path: Path) -> None:
    runs.muse_bench(tmp_path / "b")
    runs.muse_bench(tmp_path / "a")
    runs.write(tmp_path / "c" / "evals" / "MUSE_EVAL.json", runs.evaluation())
    runs.write(tmp_path / "c" / "evals" / "TOFU_EVAL.json", {"forget_quality": {"agg_value": 1.0}})
    (tmp_path / "notes").mkdir()
    assert [model.name for model in log_finder.find([tmp_path])] == ["a", "b", "c"]
    assert [model.name for model in log_finder.find([tmp_path / "b", tmp_path / "b" / ".." / "b", tmp_path / "a"])] == [
        "b",
        "a",
    ]


def test_part_of_the_metrics_is_enough(tmp_path: Path) -> None:
    runs.write(tmp_path / "m" / "knowmem_r" / "log.json", runs.entries("knowmem_r", [3]))
    assert [log.metric for log in model_in(tmp_path / "m").metrics] == ["knowmem_r"]


@pytest.mark.parametrize(
    ("metric", "change", "place"),
    [
        ("knowmem_f", lambda log: log[2].pop("response"), "entry 2: 'response' must be a text, and is missing"),
        ("knowmem_f", lambda log: log[1].update(gt=None), "entry 1: 'gt' must be a text, and is null"),
        ("verbmem_f", lambda log: log[0].update(rougeL="0.5"), "entry 0: 'rougeL' must be a number, and is a text"),
        ("verbmem_f", lambda log: log[3].update(rougeL=True), "entry 3: 'rougeL' must be a number, and is true or"),
        ("verbmem_f", lambda log: log[3].update(rougeL=10**400), "entry 3: 'rougeL' is a number of 401 digits"),
        ("knowmem_r", lambda log: log.__setitem__(3, ["x"]), "entry 3: an object with 'prompt', 'gt' and 'response'"),
        ("knowmem_r", lambda log: log.clear(), "log.json: a list of responses is expected, and this is an empty list"),
        ("knowmem_r", lambda log: log[1].update(response="a" * 20_001), "entry 1: 'response' has 20001 characters"),
        ("knowmem_r", lambda log: log[1].update(prompt="\ud800"), "entry 1: 'prompt' holds half a character"),
        ("privleak", lambda log: log.pop("holdout"), "holdout: a list of texts is expected, and this is null"),
        ("privleak", lambda log: log["forget"][3].pop("Min-40%"), "forget entry 3: 'Min-40%' is missing"),
        ("privleak", lambda log: log["holdout"][1].pop("text"), "holdout entry 1: 'text' must be a text"),
        ("privleak", lambda log: log["holdout"][1].update({"Min-5%": []}), "entry 1: 'Min-5%' must be a number"),
    ],
)  # fmt: skip
def test_a_malformed_log_names_file_and_entry(tmp_path: Path, metric: str, change: Any, place: str) -> None:
    folder = runs.muse_bench(tmp_path / "npo")
    path = folder / metric / "log.json"
    log = json.loads(path.read_text())
    change(log)
    runs.write(path, log)
    with pytest.raises(InputError) as caught:
        model_in(folder)
    assert str(caught.value).startswith(f"npo/{metric}/log.json")
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda v: v["forget_verbmem_ROUGE"]["value_by_index"]["1"].pop("generation"), "verbmem_ROUGE entry '1'"),
        (lambda v: v["mia_min_k"]["holdout"]["value_by_index"]["2"].clear(), "mia_min_k holdout entry '2': 'score' is"),
        (lambda v: v["mia_min_k"].update(forget=3), "mia_min_k forget: an object"),
        (lambda v: v["forget_knowmem_ROUGE"].update(value_by_index={}), "forget_knowmem_ROUGE: 'value_by_index' has 0"),
        (lambda v: v["forget_knowmem_ROUGE"]["value_by_index"].update({"1_0": {}}), "'1_0' is no position"),
        (lambda v: v["forget_knowmem_ROUGE"]["value_by_index"].update({"٣": {}}), "is no position of a document"),
        (lambda v: v.update(privleak=[1]), "privleak: an object with 'agg_value'"),
        (lambda v: [v.pop(key) for key in list(v) if key != "privleak"], "none of MUSE's metrics can be recomputed"),
    ],
)  # fmt: skip
def test_a_malformed_evaluation_file_names_metric_and_entry(tmp_path: Path, change: Any, place: str) -> None:
    value = runs.evaluation()
    change(value)
    with pytest.raises(InputError) as caught:
        model_in(runs.write(tmp_path / "run" / "MUSE_EVAL.json", value))
    assert str(caught.value).startswith("run/MUSE_EVAL.json")
    assert place in str(caught.value)


def test_what_holds_no_log_is_refused_with_what_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no log: give a folder with .*log\.json"):
        log_finder.find([tmp_path])
    with pytest.raises(InputError, match="There is no file or folder"):
        log_finder.find([tmp_path / "absent"])
    other = runs.write(tmp_path / "t" / "OTHER_EVAL.json", {"forget_ROUGE": {"value_by_index": {}}})
    with pytest.raises(InputError, match="none of MUSE's metrics"):
        log_finder.find([other])


@pytest.mark.parametrize(
    "name",
    ["forget_Q_A_ROUGE", "forget_Q_A_Prob", "retain_Q_A_PERT_ROUGE", "wf_Q_A_Prob", "forget_Truth_Ratio",
     "forget_truth_ratio", "forget_quality", "model_utility", "mmlu/acc", "wmdp_bio/acc"],
)  # fmt: skip
def test_a_log_of_another_benchmark_is_refused_by_the_names_of_its_metrics(tmp_path: Path, name: str) -> None:
    path = runs.write(tmp_path / "m" / "MUSE_EVAL.json", runs.evaluation(**{name: {"agg_value": 0.5}}))
    with pytest.raises(InputError, match=re.escape(f"'{name}'")):
        log_finder.find([path])


def test_a_log_of_another_benchmark_is_refused_by_its_own_name(tmp_path: Path) -> None:
    path = runs.write(tmp_path / "m" / "TOFU_EVAL.json", runs.evaluation())
    with pytest.raises(InputError, match="another benchmark, such as TOFU"):
        log_finder.find([path])


def test_metrics_of_muse_that_are_not_recomputed_are_no_other_benchmark_s(tmp_path: Path) -> None:
    names = ("extraction_strength", "exact_memorization", "mia_loss", "mia_zlib", "mia_min_k_plus_plus", "rel_diff")
    path = runs.write(tmp_path / "m" / "MUSE_EVAL.json", runs.evaluation(**{key: {"agg_value": 0.5} for key in names}))
    assert len(log_finder.find([path])[0].metrics) == 4


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, '"\\ud8', "NaNa", '{"a": 1' + "0" * 5000 + "}"])
def test_what_is_no_json_is_one_sentence(tmp_path: Path, content: str) -> None:
    path = runs.write(tmp_path / "m" / "knowmem_f" / "log.json", content)
    with pytest.raises(InputError, match=r"^m/knowmem_f/log\.json: it is no JSON"):
        log_finder.find([path.parent.parent])


def test_a_log_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    path = runs.write(tmp_path / "m" / "knowmem_f" / "log.json", "")
    path.write_bytes(b'[{"prompt": "\xff"}]')
    with pytest.raises(InputError, match="it is no JSON"):
        log_finder.find([tmp_path / "m"])


def test_a_log_that_is_too_large_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runs.muse_bench(tmp_path / "m")
    monkeypatch.setattr(log_files, "MAX_BYTES", 100)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail(f"{self} was read"))
    with pytest.raises(InputError, match="logs of at most 100 are read"):
        log_finder.find([folder])


def test_a_log_with_too_many_entries_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runs.muse_bench(tmp_path / "m")
    monkeypatch.setattr(log_files, "MAX_ENTRIES", 3)
    with pytest.raises(InputError, match="it has 4 entries, and at most 3 are read"):
        log_finder.find([folder])


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    secret = runs.write(tmp_path / "elsewhere.json", runs.entries("knowmem_f", [1]))
    folder = tmp_path / "m" / "knowmem_f"
    folder.mkdir(parents=True)
    os.symlink(secret, folder / "log.json")
    with pytest.raises(InputError, match="it is a link out of its folder"):
        log_finder.find([tmp_path / "m"])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["prompt", "gt", "response", "rougeL", "text", "Min-40%", "Min-60%", "PPL", "forget", "holdout", "score",
             "0", "1", "value_by_index", "agg_value", "input", "ground_truth", "generation", "rougeL_f1", "mia_min_k",
             "privleak", *runs.OPEN_KEYS.values()]
        ),
        inner, max_size=5,
    ),
    max_leaves=30,
)  # fmt: skip
answer_like = st.fixed_dictionaries(
    {"prompt": st.text(max_size=8), "gt": st.text(max_size=8), "response": st.text(max_size=8)},
    optional={"rougeL": st.floats() | st.integers(), "question": json_values},
)
text_like = st.fixed_dictionaries(
    {"text": st.text(max_size=8), "Min-40%": st.floats() | st.integers()},
    optional={"PPL": st.floats(), "Min-60%": st.floats(), "Min-5%": json_values},
)
muse_values = json_values | st.lists(answer_like | json_values, max_size=4) | st.lists(answer_like, max_size=4)
privacy_values = json_values | st.fixed_dictionaries(
    {"forget": st.lists(text_like, max_size=3), "holdout": st.lists(text_like, max_size=3) | json_values}
)


def rescore_or_refuse(read: Callable[[], LoggedModel]) -> None:
    """A log is refused with one sentence, or everything recomputed is finite, or missing with a reason."""
    refusals: list[str] = []
    try:
        model = read()
    except InputError as error:
        refusals.append(str(error))
    if refusals:
        assert "\n" not in refusals[0]
        return
    for log in model.metrics:
        evaluation = recompute.rescore(model, log, catalogue.load_corpus("books"))
        for score in evaluation.scores:
            assert (score.value is None) == (score.missing_reason is not None)
            assert score.value is None or math.isfinite(score.value)
        for document in evaluation.documents:
            assert all(math.isfinite(value) for value in document.scores.values())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(metric=st.sampled_from([*RESPONSES, "privleak"]), plain=muse_values, privacy=privacy_values)
def test_any_json_value_is_a_log_or_one_sentence(tmp_path: Path, metric: str, plain: Any, privacy: Any) -> None:
    runs.write(tmp_path / "m" / metric / "log.json", privacy if metric == "privleak" else plain)
    rescore_or_refuse(lambda: muse_bench.read(tmp_path / "m", {}))
    for written in RESPONSES:
        (tmp_path / "m" / written / "log.json").unlink(missing_ok=True)
    (tmp_path / "m" / "privleak" / "log.json").unlink(missing_ok=True)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_json_value_in_place_of_a_metric_is_a_log_or_one_sentence(tmp_path: Path, data: Any) -> None:
    value = runs.evaluation()
    key = data.draw(st.sampled_from(list(value)))
    if isinstance(value[key], dict) and data.draw(st.booleans()):
        value[key][data.draw(st.sampled_from(list(value[key])))] = data.draw(json_values)
    else:
        value[key] = data.draw(json_values)
    path = runs.write(tmp_path / "m" / "MUSE_EVAL.json", value if data.draw(st.booleans()) else value[key])
    rescore_or_refuse(lambda: open_unlearning.read(path))


@pytest.fixture
def texts(tmp_path: Path) -> catalogue.Corpus:
    return catalogue.load_corpus("books", data_dir=runs.corpus_texts(tmp_path / "data"))


@pytest.mark.parametrize("metric", [*RESPONSES, "privleak"])
def test_logs_on_the_given_texts_match_them_entirely(tmp_path: Path, texts: catalogue.Corpus, metric: str) -> None:
    found = corpus_match.match(log_of(model_in(runs.muse_bench(tmp_path / "npo")), metric), texts)
    documents = 7 if metric == "privleak" else 4
    assert found is not None
    assert (found.documents, found.of_corpus, found.known, found.same_prompt) == (documents,) * 4
    assert found.same_reference == (None if metric == "privleak" else 4)


def test_spaces_and_in_context_pairs_make_another_prompt_but_the_same_question(
    tmp_path: Path, texts: catalogue.Corpus
) -> None:
    folder = runs.muse_bench(tmp_path / "npo")
    log = runs.entries("knowmem_f", runs.KNOWN["knowmem_f"])
    log[0]["prompt"] = log[0]["prompt"].rstrip()
    log[1]["prompt"] = log[1]["prompt"].removeprefix(runs.SHOTS)
    log[2]["prompt"] = log[2]["prompt"].replace("number 2", "nobody")
    log[3]["gt"] = "something else"
    runs.write(folder / "knowmem_f" / "log.json", log)
    found = corpus_match.match(log_of(model_in(folder), "knowmem_f"), texts)
    assert found is not None
    assert (found.known, found.same_prompt, found.same_reference) == (3, 1, 2)


def test_a_verbmem_reference_may_be_cut_but_not_be_another(tmp_path: Path, texts: catalogue.Corpus) -> None:
    folder = runs.muse_bench(tmp_path / "npo")
    log = runs.entries("verbmem_f", runs.KNOWN["verbmem_f"])
    log[0]["gt"] = runs.REFERENCE[:17] + "\ufffd"
    log[1]["gt"] = runs.REFERENCE[3:]
    runs.write(folder / "verbmem_f" / "log.json", log)
    found = corpus_match.match(log_of(model_in(folder), "verbmem_f"), texts)
    assert found is not None
    assert found.same_reference == 3


def test_without_texts_at_hand_nothing_is_fetched_and_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.score.corpora.files._fetch", lambda *_: pytest.fail("the hub was asked"))
    log = log_of(model_in(runs.muse_bench(tmp_path / "npo")), "knowmem_f")
    books = catalogue.load_corpus("books")
    assert corpus_match.match(log, books) is None
    cached = tmp_path / "cache" / "corpora" / f"books-{str(books.revision)[:12]}"
    runs.corpus_texts(cached)
    found = corpus_match.match(log, books)
    assert found is not None
    assert found.known == 4


def test_texts_that_a_log_does_not_keep_can_not_be_compared(tmp_path: Path, texts: catalogue.Corpus) -> None:
    model = model_in(runs.write(tmp_path / "m" / "MUSE_EVAL.json", runs.evaluation()))
    assert corpus_match.match(log_of(model, "privleak"), texts) is None
    assert corpus_match.match(log_of(model, "knowmem_f"), texts) is not None
