"""`quench run` and lm-eval's own command line give the same numbers, document by document."""

import json
import os
import subprocess
import sys

import pytest

from harness.paths import content_dir
from harness.score import lm_eval_hooks
from harness.score.corpora import catalogue
from harness.score.evaluation import evaluate
from harness.score.metrics.formulas import PRIMARY, cut_answer
from harness.score.model.language_model import QuenchLM
from harness.store.store import Store

MODEL, LIMIT = "mini-target-4bit", 6
TEACHER = {"reference_nll", "extraction_strength"}
"""From a second pass that lm-eval's route has not."""


def python(cwd, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "QUENCH_CACHE": str(cwd / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """The cells of `quench run`, by task."""
    folder = tmp_path_factory.mktemp("quench")
    python(folder, "harness.cli.main", "run", MODEL, "--no-controls", "--submissions", content_dir("submissions"),
           "--quantizers", "reference", "--limit", LIMIT, "--store", folder / "s.duckdb")  # fmt: skip
    with Store.open(folder / "s.duckdb", read_only=True) as store:
        return {result.cell.task: result for result in store.cells(with_documents=True)}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """What lm-eval's command line has written: results by task, samples by task in document order."""
    folder = tmp_path_factory.mktemp("lm_eval")
    weights = content_dir("submissions") / MODEL / "weights"
    python(folder, "harness.score.lm_eval_hooks", "run", "--model", "quench",
           "--model_args", f"pretrained={weights},dtype=float32", "--include_path", catalogue.tasks_dir(),
           "--tasks", "muse_mini", "--device", "cpu", "--batch_size", "auto", "--limit", LIMIT,
           "--log_samples", "--output_path", folder / "out")  # fmt: skip
    (written,) = (folder / "out").rglob("results_*.json")
    results = json.loads(written.read_text(encoding="utf-8"))["results"]
    samples = {}
    for path in (folder / "out").rglob("samples_*.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        task = path.name.removeprefix("samples_").rsplit("_", 1)[0]
        samples[task] = sorted(rows, key=lambda row: row["doc"]["index"])
    return results, samples


@pytest.mark.slow
@pytest.mark.parametrize("metric", PRIMARY)
def test_both_command_lines_give_the_same_aggregates(ours, theirs, metric):
    task = f"muse_mini_{metric}"
    assert ours[task].status == "finished", ours[task].reason
    shown = {key.removesuffix(",none"): value for key, value in theirs[0][task].items() if key.endswith(",none")}
    stored = {score.metric: score.value for score in ours[task].scores}
    compared = {key for key, value in shown.items() if isinstance(value, float) and key in stored}
    assert metric in compared
    assert len(compared) >= (2 if metric == "privleak" else 8)
    for key in compared:
        assert stored[key] == pytest.approx(shown[key], abs=1e-9), key


@pytest.mark.slow
@pytest.mark.parametrize("metric", PRIMARY)
def test_both_command_lines_give_every_document_the_same_scores(ours, theirs, metric):
    task = f"muse_mini_{metric}"
    samples, documents = theirs[1][task], ours[task].documents
    assert [sample["doc"]["index"] for sample in samples] == [document.index for document in documents]
    assert len(documents) == LIMIT
    for sample, document in zip(samples, documents, strict=True):
        if metric == "privleak":
            assert document.scores == pytest.approx(sample["privleak"]["scores"], abs=1e-9)
            continue
        response = sample["filtered_resps"][0]
        assert document.response == (response if metric == "verbmem_f" else cut_answer(response))
        assert set(document.scores) - TEACHER == set(sample["metrics"])
        for key in set(document.scores) - TEACHER:
            assert document.scores[key] == pytest.approx(sample[key], abs=1e-9)


@pytest.mark.parametrize("metric", PRIMARY)
def test_lm_evals_evaluator_gives_the_same_numbers_in_one_process(
    models, tokenizer, muse_folder, shipped_tasks, metric
):
    import lm_eval
    from lm_eval.tasks import TaskManager

    task = f"muse_mini_{metric}"
    found = evaluate(models["qwen2"], tokenizer, task, data_dir=muse_folder, device="cpu", limit=4, seed=0)
    metadata = {"tokenizer": lm_eval_hooks.SharedTokenizer(tokenizer), "data_dir": str(muse_folder)}
    manager = TaskManager(include_path=str(shipped_tasks), include_defaults=False, metadata=metadata)
    lm = QuenchLM(models["qwen2"], tokenizer)
    result = lm_eval.simple_evaluate(lm, tasks=[task], task_manager=manager, bootstrap_iters=0, limit=4)
    stored = {score.metric: score.value for score in found.scores}
    for key, value in result["results"][task].items():
        if key.removesuffix(",none") in stored and isinstance(value, float):
            assert stored[key.removesuffix(",none")] == pytest.approx(value, abs=1e-12)
    assert isinstance(result["results"][task][f"{metric},none"], float)


def test_lm_eval_can_be_given_a_reference_auc_for_a_corpus_that_states_none(
    models, tokenizer, muse_folder, shipped_tasks, edit_corpus
):
    import lm_eval
    from lm_eval.tasks import TaskManager

    edit_corpus("mini", reference_auc=None)
    values = {}
    for given in (0.4, "own"):
        metadata = {"data_dir": str(muse_folder), "reference_auc": given}
        manager = TaskManager(include_path=str(shipped_tasks), include_defaults=False, metadata=metadata)
        lm = QuenchLM(models["llama"], tokenizer)
        found = lm_eval.simple_evaluate(lm, tasks=["muse_mini_privleak"], task_manager=manager, bootstrap_iters=0)
        row = found["results"]["muse_mini_privleak"]
        values[given] = row["privleak,none"]
        ours = evaluate(models["llama"], tokenizer, "muse_mini_privleak", data_dir=muse_folder, device="cpu",
                        limit=None, seed=0, reference_auc=given)  # fmt: skip
        assert ours.scores[0].value == pytest.approx(row["privleak,none"], abs=1e-12)
    assert values[0.4] == pytest.approx(100 * (row["auc,none"] - 0.4) / 0.4)
    assert values["own"] == 0
