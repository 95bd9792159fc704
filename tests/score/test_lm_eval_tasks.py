"""The YAMLs inside lm-eval: indexed, built, and run by stock lm-eval where it can."""

import json
import os
import subprocess
import sys

import pytest

from harness.errors import CorpusError, ScoringError
from harness.score import lm_eval_hooks
from harness.score.corpora import catalogue
from harness.score.metrics.formulas import PRIMARY

CORPORA = ("books", "mini", "news")


@pytest.fixture
def manager(muse_folder, tokenizer, shipped_tasks):
    from lm_eval.tasks import TaskManager

    metadata = {"tokenizer": lm_eval_hooks.SharedTokenizer(tokenizer), "data_dir": str(muse_folder)}
    return TaskManager(include_path=str(shipped_tasks), include_defaults=False, metadata=metadata)


def test_every_task_and_group_is_in_lm_evals_index_and_nothing_else(manager):
    assert manager.all_groups == [f"muse_{name}" for name in (*CORPORA, "smol")]
    whole = [f"muse_{name}_{metric}" for name in CORPORA for metric in PRIMARY]
    whole += [f"muse_smol_{metric}" for metric in ("verbmem_f", "knowmem_r", "privleak")]
    assert sorted(manager.all_subtasks) == sorted(whole)
    assert len(manager.all_tasks) == 19
    assert manager.all_tags == []


def test_the_index_stands_on_yaml_files_only(manager, shipped_tasks):
    files = {entry.yaml_path.relative_to(shipped_tasks).as_posix() for entry in manager.task_index.values()}
    assert not any(file.startswith("_metrics") for file in files)
    assert all(file.endswith(".yaml") for file in files)


@pytest.mark.parametrize("name", CORPORA)
def test_a_group_builds_its_four_tasks(manager, name):
    loaded = manager.load([f"muse_{name}"])
    assert list(loaded["tasks"]) == [f"muse_{name}_{metric}" for metric in PRIMARY]
    kinds = [task.OUTPUT_TYPE for task in loaded["tasks"].values()]
    assert kinds == ["generate_until"] * 3 + ["token_logprobs"]
    for task in loaded["tasks"].values():
        assert task.VERSION == 1
        assert task.config.num_fewshot == 0
        assert task.config.target_delimiter == ""


def build(manager, name):
    task = manager.load([name])["tasks"][name]
    task.build_all_requests()
    return task


def test_verbmem_asks_for_plain_continuations_without_a_stop_string(manager):
    task = build(manager, "muse_mini_verbmem_f")
    prompt, settings = task.instances[0].args
    assert prompt == task.eval_docs[0]["prompt"]
    assert settings["until"] == []
    assert settings["do_sample"] is False
    assert settings["max_gen_toks"] == 64


def test_verbmem_references_are_their_first_tokens_bos_included(muse_folder, tokenizer, bare_tokenizer):
    texts = [item["gt"] for item in json.loads((muse_folder / "verbmem" / "forget.json").read_text(encoding="utf-8"))]
    assert any(len(tokenizer(text)["input_ids"]) > 20 for text in texts)
    for encoder, real in ((tokenizer, 19), (bare_tokenizer, 20)):
        found = lm_eval_hooks.verbmem_documents(
            corpus="news",
            reference_tokens=20,
            tokenizer=lm_eval_hooks.SharedTokenizer(encoder),
            data_dir=str(muse_folder),
        )["forget"]
        for text, document in zip(texts, found, strict=True):
            ids = encoder(text, add_special_tokens=False)["input_ids"]
            assert document["reference"] == encoder.decode(ids[:real])


def test_the_tokenizer_may_be_named_by_its_folder_or_by_the_models(muse_folder, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    settings = {"corpus": "news", "reference_tokens": 9, "data_dir": str(muse_folder)}
    shared = lm_eval_hooks.verbmem_documents(**settings, tokenizer=lm_eval_hooks.SharedTokenizer(tokenizer))
    for named in ({"tokenizer": str(tmp_path)}, {"pretrained": str(tmp_path)}):
        found = lm_eval_hooks.verbmem_documents(**settings, **named, dtype="float32", config_source="x.yaml")
        assert found["forget"].to_list() == shared["forget"].to_list()
    with pytest.raises(ScoringError, match="none was named: give lm-eval the model argument"):
        lm_eval_hooks.verbmem_documents(**settings)


def test_knowmem_prompts_hold_their_shots_and_end_in_a_space(manager, muse_folder):
    pairs = json.loads((muse_folder / "knowmem" / "forget_qa_icl.json").read_text(encoding="utf-8"))
    question = json.loads((muse_folder / "knowmem" / "forget_qa.json").read_text(encoding="utf-8"))[0]["question"]
    for name, shots in (("mini", 5), ("news", 10)):
        task = build(manager, f"muse_{name}_knowmem_f")
        prompt, settings = task.instances[0].args
        assert prompt.endswith(f"\n\nQuestion: {question}\nAnswer: ")
        assert prompt.startswith(f"Question: {pairs[0]['question']}\nAnswer: {pairs[0]['answer']}\n\nQuestion: ")
        assert prompt.count("Question: ") == shots + 1
        assert settings["until"] == ["\n\n", "\nQuestion", "Question:"]


def test_retain_questions_use_the_retain_shots(manager, muse_folder):
    shots = json.loads((muse_folder / "knowmem" / "retain_qa_icl.json").read_text(encoding="utf-8"))
    prompt = build(manager, "muse_news_knowmem_r").instances[0].args[0]
    assert prompt.startswith(f"Question: {shots[0]['question']}\n")


def test_privleak_takes_forget_and_holdout_by_turns(manager):
    task = build(manager, "muse_news_privleak")
    splits = [document["split"] for document in task.eval_docs]
    assert splits == ["forget", "holdout"] * 7 + ["forget", "forget"]
    assert [document["index"] for document in task.eval_docs] == list(range(16))
    request = task.instances[3]
    assert request.request_type == "token_logprobs"
    assert request.args == (task.eval_docs[3]["text"],)


def test_the_data_folder_may_come_from_the_environment(muse_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("QUENCH_DATA_DIR", str(muse_folder))
    settings = {"corpus": "mini", "questions": "forget_qa", "icl_pairs": 5}
    assert len(lm_eval_hooks.knowmem_documents(**settings)["forget_qa"]) == 14
    assert len(lm_eval_hooks.knowmem_documents(**settings, data_dir="")["forget_qa"]) > 14
    with pytest.raises(CorpusError, match="does not exist"):
        lm_eval_hooks.knowmem_documents(**settings, data_dir=str(tmp_path / "gone"))


def test_privleak_without_a_reference_is_refused_inside_lm_eval_too(edit_corpus, manager):
    edit_corpus("mini", reference_auc=None)
    with pytest.raises(CorpusError, match="no usable reference AUC"):
        manager.load(["muse_mini_privleak"])


def test_results_are_python_values_and_lists_of_metrics_match_the_yaml(manager):
    document = {"reference": "the old ferry", "prompt": "x"}
    for metric, function in (
        ("verbmem_f", lm_eval_hooks.verbmem_results),
        ("knowmem_f", lm_eval_hooks.knowmem_f_results),
        ("knowmem_r", lm_eval_hooks.knowmem_r_results),
    ):
        found = function(document, ["the old ferry\n\nQuestion: more"])
        assert all(type(value) is float for value in found.values())
        assert set(found) == set(manager.load([f"muse_mini_{metric}"])["tasks"][f"muse_mini_{metric}"].aggregation())
        # Only a KnowMem answer ends where the next question begins.
        assert found[metric] == pytest.approx(0.75 if metric == "verbmem_f" else 1.0)


def test_a_text_that_can_not_be_scored_is_invalid_with_its_reason():
    document = {"split": "forget", "position": 4, "text": "the old ferry", "reference_auc": 0.5}

    def record(logprobs):
        answer = {"logprobs": logprobs, "means": [-1.0] * len(logprobs), "stds": [1.0] * len(logprobs)}
        return lm_eval_hooks.privleak_results(document, [answer])["privleak"]

    assert record([-1.0, -2.0])["invalid_reason"] == (
        "item 4 of privleak/forget.json has 2 scored tokens, but Min-40% needs at least 3: put a longer text there,"
        " or leave it out"
    )
    assert record([-1.0, float("nan"), float("-inf")])["invalid_reason"].startswith("2 of 3 log-probabilities")
    good = record([-1.0, -2.0, -3.0])
    assert good["invalid_reason"] is None
    assert good["scores"]["min_k_40"] == 3.0
    assert record([-1.0])["scores"] == {}


def test_the_aggregation_leaves_invalid_texts_out():
    def record(split, score):
        scores = {} if score is None else {"min_k_40": score}
        return {"split": split, "scores": scores, "reference_auc": 0.5}

    records = [record("forget", 1.0), record("holdout", 2.0), record("forget", None), record("holdout", 0.5)]
    assert lm_eval_hooks.aggregate_auc(records) == 0.5
    assert lm_eval_hooks.aggregate_privleak(records) == 0
    assert lm_eval_hooks.membership_auc([record("forget", 1.0), record("holdout", None)]) is None


def test_a_stock_language_model_fails_clearly_at_privleak(manager, models, tokenizer):
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    stock = HFLM(pretrained=models["llama"], tokenizer=tokenizer)
    with pytest.raises(AttributeError, match="token_logprobs"):
        lm_eval.simple_evaluate(stock, tasks=["muse_mini_privleak"], task_manager=manager, bootstrap_iters=0)


def test_shots_can_not_be_replaced_from_the_command_line(manager, models, tokenizer):
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    stock = HFLM(pretrained=models["llama"], tokenizer=tokenizer)
    name = "muse_mini_knowmem_f"
    result = lm_eval.simple_evaluate(
        stock, tasks=[name], task_manager=manager, bootstrap_iters=0, num_fewshot=3, limit=2
    )
    assert result["samples"][name][0]["arguments"][0][0].count("Question: ") == 6


def test_importing_the_hooks_imports_neither_lm_eval_nor_torch():
    code = (
        "import sys, harness.score.lm_eval_hooks, harness.score.model.language_model, harness.score.evaluation;"
        "print([m for m in ('torch', 'lm_eval', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = lm_eval_hooks.Nothing


def test_quench_is_a_model_of_lm_evals_registry():
    from lm_eval.api.registry import get_model

    from harness.score.model.language_model import QuenchLM

    lm_eval_hooks.register_language_model()
    lm_eval_hooks.register_language_model()
    assert get_model("quench") is QuenchLM


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "model_type", "tasks"),
    [
        ("lm_eval", "hf", "muse_mini_verbmem_f,muse_mini_knowmem_f,muse_mini_knowmem_r"),
        ("harness.score.lm_eval_hooks", "quench", "muse_news"),
    ],
)
def test_lm_evals_own_command_line_runs_the_tasks(
    new_model, tokenizer, muse_folder, tmp_path, program, model_type, tasks
):
    folder = tmp_path / "model"
    new_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    done = subprocess.run(
        [sys.executable, "-m", program, "run", "--model", model_type, "--model_args", f"pretrained={folder}",
         "--include_path", str(catalogue.tasks_dir()), "--tasks", tasks, "--device", "cpu", "--limit", "4",
         "--batch_size", "4", "--output_path", str(tmp_path / "out")],
        env=os.environ | {"QUENCH_DATA_DIR": str(muse_folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = (tmp_path / "out").rglob("results*.json")
    results = json.loads(written.read_text(encoding="utf-8"))["results"]
    for task in catalogue.resolve_tasks(tasks.split(",")):
        assert isinstance(results[task][f"{catalogue.metric_of(task)},none"], float)
