"""The fifteen traps of evaluating MUSE with lm-eval: each has a test that fails once somebody steps into it.

``TRAPS`` says which tests guard which trap; many stand in the neighbouring
files, what they leave open stands here. A test here shows first that the naive
way gives something else, then that ours does not.
"""

import ast
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from harness.paths import content_dir
from harness.score import lm_eval_hooks
from harness.score.corpora import catalogue
from harness.score.evaluation import evaluate
from harness.score.metrics.formulas import PRIMARY
from harness.score.model.language_model import QuenchLM, StopStrings

TRAPS = {
    1: ("test_every_task_and_group_is_in_lm_evals_index_and_nothing_else",
        "test_a_task_file_that_lm_eval_passes_over_is_noticed"),
    2: ("test_without_until_a_continuation_would_end_at_its_first_blank_line",
        "test_a_target_delimiter_would_stand_between_prompt_and_answer"),
    3: ("test_shots_can_not_be_replaced_from_the_command_line",),
    4: ("test_stock_rolling_log_likelihood_counts_bos_as_a_token_and_ours_does_not",
        "test_bos_is_context_only_and_counted_once", "test_a_stock_language_model_fails_clearly_at_privleak"),
    5: ("test_privleak_takes_forget_and_holdout_by_turns", "test_a_limit_takes_the_first_documents_and_both_splits",
        "test_no_score_is_a_string_such_as_lm_evals_missing_standard_error"),
    6: ("test_lm_evals_cache_would_give_one_model_s_answers_to_another",
        "test_two_models_after_each_other_get_their_own_answers"),
    7: ("test_a_submissions_generation_config_has_no_say",
        "test_a_submission_s_own_tokenizer_and_generation_config_move_no_score"),
    8: ("test_bfloat16_logits_are_raised_before_the_softmax",),
    9: ("test_a_group_is_a_list_of_names_and_no_average", "test_primary_metrics_have_a_name_of_their_own_in_each_task"),
    10: ("test_texts_are_found_whatever_the_working_directory", "test_metadata_and_task_settings_share_no_key",
         "test_the_tokenizer_may_be_named_by_its_folder_or_by_the_models"),
    11: ("test_lm_evals_own_tasks_are_not_indexed",),
    12: ("test_lm_evals_stop_criterion_waits_for_one_string_in_every_row_and_ours_does_not",
         "test_lm_eval_can_not_load_a_quantized_model_itself", "test_rows_are_judged_one_by_one"),
    13: ("test_long_answers_survive_lm_evals_sample_log",
         "test_responses_are_whole_python_strings_and_scores_plain_floats"),
    14: ("test_a_tokenizer_that_cleans_up_spaces_changes_no_reference_and_no_response",),
    15: ("test_every_miniature_document_gets_the_oracle_s_response_and_score",
         "test_padded_batches_give_the_tokens_of_the_plain_loop",
         "test_answers_with_a_shared_prefix_are_those_of_the_plain_loop"),
}  # fmt: skip


def test_every_trap_is_guarded_by_tests_that_exist():
    written = {
        node.name
        for path in Path(__file__).parent.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert sorted(TRAPS) == list(range(1, 16))
    assert {name for names in TRAPS.values() for name in names} <= written


@pytest.fixture
def run(shipped_tasks, muse_folder, tokenizer):
    def call(model, metric, *, data_dir=muse_folder, limit=None, encoder=tokenizer):
        return evaluate(model, encoder, f"muse_mini_{metric}", data_dir=data_dir, device="cpu", limit=limit, seed=0)

    return call


@pytest.fixture
def build(shipped_tasks, muse_folder, tokenizer):
    """Builds a task the way lm-eval does, from the copied YAMLs."""
    from lm_eval.tasks import TaskManager

    def call(name):
        metadata = {"tokenizer": lm_eval_hooks.SharedTokenizer(tokenizer), "data_dir": str(muse_folder)}
        manager = TaskManager(include_path=str(shipped_tasks), include_defaults=False, metadata=metadata)
        task = manager.load([name])["tasks"][name]
        task.build_all_requests()
        return task

    return call


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_without_until_a_continuation_would_end_at_its_first_blank_line(build, shipped_tasks):
    assert build("muse_mini_verbmem_f").instances[0].args[1]["until"] == []
    edit(shipped_tasks / "muse_mini" / "verbmem_f.yaml", "  until: []\n", "")
    assert build("muse_mini_verbmem_f").instances[0].args[1]["until"] == ["\n\n"]


def test_a_target_delimiter_would_stand_between_prompt_and_answer(build, shipped_tasks):
    """Zero shots hide it from the prompt today; the setting keeps lm-eval's default of a space out for good."""
    for metric in PRIMARY:
        assert build(f"muse_mini_{metric}").config.target_delimiter == ""
    edit(shipped_tasks / "_metrics" / "knowmem_f.yaml", 'target_delimiter: ""\n', "")
    assert build("muse_mini_knowmem_f").config.target_delimiter == " "


def test_stock_rolling_log_likelihood_counts_bos_as_a_token_and_ours_does_not(models, tokenizer, plain_logprobs):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    text = "the keeper of the lamp"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == 1
    stock = HFLM(pretrained=models["llama"], tokenizer=tokenizer, batch_size=1)
    request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0, metadata=("x", 0, 1))
    (naive,) = stock.loglikelihood_rolling([request], disable_tqdm=True)
    right = sum(plain_logprobs(models["llama"], ids))
    assert naive == pytest.approx(sum(plain_logprobs(models["llama"], [1, *ids])), abs=1e-3)
    assert abs(naive - right) > 0.1
    (ours,) = QuenchLM(models["llama"], tokenizer).token_logprobs([request])
    assert sum(ours["logprobs"]) == pytest.approx(right, abs=1e-3)


def test_no_score_is_a_string_such_as_lm_evals_missing_standard_error(run, models, build, tokenizer):
    import lm_eval.evaluator

    naive = lm_eval.evaluator.evaluate(
        lm=QuenchLM(models["llama"], tokenizer), task_dict={"muse_mini_privleak": build("muse_mini_privleak")}
    )
    assert naive["results"]["muse_mini_privleak"]["privleak_stderr,none"] == "N/A"
    for score in run(models["llama"], "privleak").scores:
        assert isinstance(score.value, float)


def test_lm_evals_cache_would_give_one_model_s_answers_to_another(
    run, models, tokenizer, muse_folder, shipped_tasks, tmp_path, monkeypatch
):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    name = "muse_mini_knowmem_f"

    def naive(kind):
        metadata = {"data_dir": str(muse_folder)}
        manager = TaskManager(include_path=str(shipped_tasks), include_defaults=False, metadata=metadata)
        stock = HFLM(pretrained=models[kind], tokenizer=tokenizer, batch_size=1)
        found = lm_eval.simple_evaluate(
            stock, tasks=[name], task_manager=manager, bootstrap_iters=0, limit=3, use_cache=str(tmp_path / "cache")
        )
        return [sample["resps"][0][0] for sample in found["samples"][name]]

    assert naive("llama") == naive("qwen2")
    monkeypatch.setattr("lm_eval.api.model.CachingLM.__init__", lambda *_, **__: pytest.fail("the cache was used"))
    ours = [[document.response for document in run(models[kind], "knowmem_f", limit=3).documents]
            for kind in ("llama", "qwen2")]  # fmt: skip
    assert ours[0] != ours[1]


def test_a_submission_s_own_tokenizer_and_generation_config_move_no_score(tmp_path):
    """Two copies of one model; the second brings a tokenizer that splits differently and a repetition penalty."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness.quantize import resolve
    from harness.records import Cell, Job
    from harness.run.job import Settings, run_job
    from harness.submit.manifest import load as manifest

    target, plain = "mini-target-4bit", "mini-ga-gdr-full-weak-retain"
    for name in (target, plain, "mini-retrain"):
        shutil.copytree(content_dir("submissions") / name, tmp_path / "board" / name)
    found = manifest.load_all(tmp_path / "board")
    task = "muse_mini_knowmem_r"
    cell = Cell(submission=plain, quantizer="reference", task=task, key="0" * 64, limit=6)

    def responses():
        ended = []
        job = Job(submission=found[plain], spec=resolve("reference"), cells=(cell,))
        run_job(job, found, Settings(cache=str(tmp_path / "cache"), threads=1), emit=ended.append)
        assert ended[0].status == "finished", ended[0].reason
        return [(document.response, document.scores) for document in ended[0].documents]

    before = responses()
    weights = tmp_path / "board" / plain / "weights"
    core = json.loads((weights / "tokenizer.json").read_text(encoding="utf-8"))
    core["model"]["merges"] = []
    (weights / "tokenizer.json").write_text(json.dumps(core), encoding="utf-8")
    settings = {"repetition_penalty": 5.0, "max_new_tokens": 1, "no_repeat_ngram_size": 1}
    (weights / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    own = AutoTokenizer.from_pretrained(weights)
    assert own("The ferry")["input_ids"] != AutoTokenizer.from_pretrained(tmp_path / "board" / target / "weights")(
        "The ferry")["input_ids"]  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(weights)
    assert model.generation_config.repetition_penalty == 5.0
    naive = evaluate(model.float(), own, task, data_dir=None, device="cpu", limit=6, seed=0)
    assert [document.response for document in naive.documents] != [response for response, _ in before]
    found = {**found, plain: replace(found[plain], weights_sha256=None)}
    assert responses() == before


def test_a_group_is_a_list_of_names_and_no_average(models, tokenizer, shipped_tasks, muse_folder):
    import lm_eval
    import yaml
    from lm_eval.tasks import TaskManager

    for path in shipped_tasks.glob("muse_*/group.yaml"):
        assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) == {"group", "task"}
    metadata = {"tokenizer": lm_eval_hooks.SharedTokenizer(tokenizer), "data_dir": str(muse_folder)}
    manager = TaskManager(include_path=str(shipped_tasks), include_defaults=False, metadata=metadata)
    lm = QuenchLM(models["llama"], tokenizer)
    found = lm_eval.simple_evaluate(lm, tasks=["muse_mini"], task_manager=manager, bootstrap_iters=0, limit=2)
    numbers = [key for key, value in found["results"].get("muse_mini", {}).items() if isinstance(value, float)]
    assert numbers == []
    assert set(found["results"]) - {"muse_mini"} == {f"muse_mini_{metric}" for metric in PRIMARY}


def test_primary_metrics_have_a_name_of_their_own_in_each_task(build):
    listed = {metric: {m["metric"] for m in build(f"muse_mini_{metric}").config.metric_list} for metric in PRIMARY}
    for metric in PRIMARY:
        assert [task for task, names in listed.items() if metric in names] == [metric]


def test_texts_are_found_whatever_the_working_directory(run, models, tmp_path, monkeypatch):
    """Relative ``data_files`` in a YAML would be looked for below the working directory."""
    monkeypatch.chdir(tmp_path)
    for metric in PRIMARY:
        assert len(run(models["llama"], metric, data_dir=None, limit=2).documents) == 2
    for corpus in catalogue.corpus_names():
        for task in catalogue.load_corpus(corpus).tasks:
            assert "data_files" not in json.dumps(catalogue.task_settings(task))


def test_metadata_and_task_settings_share_no_key(run, models, monkeypatch):
    """lm-eval gives both to ``custom_dataset`` as keyword arguments: a key in both is a TypeError."""
    import lm_eval.tasks

    given = []
    plain = lm_eval.tasks.TaskManager

    def record(*arguments, metadata, **rest):
        given.append(set(metadata))
        return plain(*arguments, metadata=metadata, **rest)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", record)
    for metric in PRIMARY:
        run(models["llama"], metric, limit=2)
        assert not given[-1] & set(catalogue.task_settings(f"muse_mini_{metric}")["dataset_kwargs"])
    with pytest.raises(TypeError, match="multiple values"):
        lm_eval_hooks.knowmem_documents(**{"corpus": "mini"}, **{"corpus": "mini"})


def test_lm_evals_own_tasks_are_not_indexed(run, models, monkeypatch):
    """Indexing them takes half a minute, and a task of theirs could take the name of one of ours."""
    import lm_eval.tasks

    managers = []
    plain = lm_eval.tasks.TaskManager

    def record(*arguments, **named):
        assert named["include_defaults"] is False
        managers.append(plain(*arguments, **named))
        return managers[-1]

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", record)
    run(models["llama"], "verbmem_f", limit=1)
    (manager,) = managers
    assert {name.split("_")[0] for name in manager.all_tasks} == {"muse"}


def test_lm_evals_stop_criterion_waits_for_one_string_in_every_row_and_ours_does_not(bare_tokenizer):
    import torch
    from lm_eval.models.utils_hf import stop_sequences_criteria

    strings = ["\n\n", "Question:"]
    rows = [bare_tokenizer(text)["input_ids"][-2:] for text in ("the bells\n\n", "the lamp Question:")]
    naive = stop_sequences_criteria(bare_tokenizer, strings, initial_decoder_input_length=0, batch_size=2)
    assert not any(bool(torch.as_tensor(each(torch.tensor(rows), None)).all()) for each in naive)
    alone = stop_sequences_criteria(bare_tokenizer, strings, initial_decoder_input_length=0, batch_size=1)
    assert any(bool(torch.as_tensor(each(torch.tensor(rows[:1]), None)).all()) for each in alone)
    assert StopStrings(bare_tokenizer, strings)(rows) == [True, True]


def test_lm_eval_can_not_load_a_quantized_model_itself(new_model, tokenizer, tmp_path):
    """So the harness makes the model and hands lm-eval the object."""
    from lm_eval.models.huggingface import HFLM

    new_model("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="load_in_4bit"):
        HFLM(pretrained=str(tmp_path), load_in_4bit=True, device="cpu")
    model = new_model("llama")
    assert QuenchLM(model, tokenizer).model is model


def test_long_answers_survive_lm_evals_sample_log(models, tokenizer):
    """lm-eval writes what JSON does not know as ``str``, and numpy's ends in three dots."""
    from types import SimpleNamespace

    import numpy as np
    from lm_eval.utils import handle_non_serializable

    text = "the old ferry waits for the keeper of the lamp " * 40
    lm = QuenchLM(models["llama"], tokenizer)
    (answer,) = lm.token_logprobs([SimpleNamespace(args=(text,))])
    count = lm.max_length - 1
    naive = json.loads(json.dumps(np.zeros(2000), default=handle_non_serializable))
    assert isinstance(naive, str)
    assert "..." in naive
    kept = json.loads(json.dumps(answer, default=handle_non_serializable))
    for key in ("logprobs", "means", "stds"):
        assert len(kept[key]) == min(count, len(tokenizer(text)["input_ids"]) - 1)
        assert {type(value) for value in answer[key]} == {float}


def test_a_tokenizer_that_cleans_up_spaces_changes_no_reference_and_no_response(
    run, models, tokenizer, own_muse_folder
):
    import copy

    texts = [{"prompt": "the old ferry ", "gt": "the keeper , and the lamp . do n't wait ! " * 3}]
    (own_muse_folder / "verbmem" / "forget.json").write_text(json.dumps(texts), encoding="utf-8")
    found = []
    for cleans in (True, False):
        encoder = copy.deepcopy(tokenizer)
        encoder.clean_up_tokenization_spaces = cleans
        (document,) = run(models["llama"], "verbmem_f", data_dir=own_muse_folder, encoder=encoder).documents
        found.append((document.reference_sha256, document.response, document.scores))
        assert " , and the lamp . do n't" in document.reference_excerpt
    assert found[0] == found[1]
