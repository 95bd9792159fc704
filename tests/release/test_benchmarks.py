"""The benchmarks' contenders do the same work and agree; the GPU check runs as far as a CPU allows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import backend_matrix, board_speed, contenders, gpu_check, quantizer_nll, ray_nodes, working_memory

ROOT = Path(__file__).parents[2]
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def mini():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness.paths import content_dir

    torch.set_num_threads(1)
    folder = content_dir("submissions") / "mini-target-plain" / "weights"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("metric", ["verbmem_f", "knowmem_r", "privleak"])
def test_the_three_contenders_give_the_same_scores_for_the_same_documents(mini, metric):

    model, tokenizer = mini
    asked = contenders.documents("mini", metric, tokenizer, None, 3)
    ours = contenders.Quench(model, tokenizer, None).run(metric, asked)
    assert contenders.agreement(ours, contenders.ReferenceLoop(model, tokenizer).run(metric, asked)) < 1e-6
    stock = contenders.StockLmEval(model, tokenizer, batch_size=2).run(metric, asked)
    assert len(stock) == len(ours) == (6 if metric == "privleak" else 3)
    if metric != "privleak":
        assert contenders.agreement(ours, stock) == 0


def test_a_difference_of_one_document_shows_in_the_agreement():

    assert contenders.agreement([0.1, 0.5], [0.1, 0.75]) == 0.25
    with pytest.raises(ValueError, match="zip"):
        contenders.agreement([0.1], [0.1, 0.2])


def test_without_a_card_the_gpu_check_says_so_in_one_sentence():
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu_check"], cwd=ROOT, capture_output=True, text=True)
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("There is no CUDA device here")


def test_the_gpu_checks_parity_and_table_run_on_a_small_model(capsys):
    import torch

    tokenizer = gpu_check.wide_tokenizer()
    assert len(tokenizer) == gpu_check.VOCABULARY
    model = gpu_check.random_llama(TINY, "cpu", torch.float32)
    work = gpu_check.make_work(tokenizer, 2, 24, new_tokens=4)
    differ, gap = gpu_check.check_parity(model, tokenizer, work)
    assert differ == 0
    assert gap < 1e-4
    gpu_check.measure("tiny", model, tokenizer, work, 1)
    shown = capsys.readouterr().out
    assert "stock lm-eval, batch 32" in shown
    assert "over the floor" in shown


def test_the_gpu_check_tells_seconds_a_billion_weights_and_what_a_device_lacks(capsys):

    gpu_check.measure_quantizing(TINY, gpu_check.wide_tokenizer(), ["rtn-4bit-g64", "torchao-int4-g64"], "cpu")
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("rtn-4bit-g64: ")
    assert "s a billion weights, 4." in told[0]
    assert len(told) == 2


def test_flops_of_a_pass_count_weights_twice_a_token_and_attention(capsys):
    import torch

    model = gpu_check.random_llama(TINY, "cpu", torch.float32)
    tokenizer = gpu_check.wide_tokenizer()
    one, two = (gpu_check.Work(prompts=(text,), texts=()) for text in ("a b c", "a b c a b c a b c"))
    assert gpu_check.prompt_flops(model, tokenizer, one) < gpu_check.prompt_flops(model, tokenizer, two)


def test_peak_memory_counts_what_is_held_at_once():
    import torch

    def one_after_the_other():
        for _ in range(3):
            torch.zeros(1_000_000).sum()

    def together():
        return sum(part.sum() for part in [torch.zeros(1_000_000) for _ in range(3)])

    torch.zeros(1)
    assert 4_000_000 <= working_memory.peak_bytes(one_after_the_other) < 6_000_000
    assert 12_000_000 <= working_memory.peak_bytes(together) < 14_000_000


def test_the_page_on_backends_shows_the_matrix_that_the_backends_give():

    page = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")
    shown = page.split(backend_matrix.START)[1].split(backend_matrix.END)[0].strip()
    assert shown == backend_matrix.markdown(), "run python -m benchmarks.backend_matrix"


def test_the_matrix_of_the_page_does_not_depend_on_what_is_installed(monkeypatch):
    from harness.quantize import libraries

    everywhere = backend_matrix.markdown()
    monkeypatch.setattr(libraries, "version_of", lambda name: None)
    assert backend_matrix.markdown() == everywhere
    assert everywhere.count("\n| `") == len(backend_matrix.support_matrix.matrix("cpu"))


def test_the_matrix_is_written_between_its_marks_and_nothing_else_changes(tmp_path, monkeypatch):

    page = tmp_path / "page.md"
    page.write_text(f"before\n{backend_matrix.START}\nold\n{backend_matrix.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["backend_matrix.py", "--page", str(page)])
    backend_matrix.main()
    written = page.read_text(encoding="utf-8")
    assert written.startswith(f"before\n{backend_matrix.START}\n| backend |")
    assert written.endswith(f"\n{backend_matrix.END}\nafter\n")
    assert "\nold\n" not in written


def test_mean_nll_is_over_all_predicted_tokens_of_all_windows(mini):
    import torch

    model, _ = mini
    windows = [list(range(5, 25)), list(range(40, 47))]
    found = quantizer_nll.mean_nll(model, windows)
    with torch.no_grad():
        each = [model(torch.tensor([w]), labels=torch.tensor([w])).loss.item() for w in windows]
    assert found == pytest.approx((19 * each[0] + 6 * each[1]) / 25, rel=1e-5)


def test_a_figure_that_is_not_the_known_one_and_a_useless_gptq_are_faults():

    right = dict(quantizer_nll.EXPECTED) | {"gptq-4bit-g64": 3.45}
    assert quantizer_nll.unexpected(right) == []
    (fault,) = quantizer_nll.unexpected(right | {"bnb-nf4": 3.54})
    assert fault.startswith("bnb-nf4 has a mean NLL of 3.5400 instead of 3.5215")
    (fault,) = quantizer_nll.unexpected(right | {"gptq-4bit-g64": 3.6})
    assert "no better than rtn-4bit-g64" in fault
    assert quantizer_nll.table_row("bnb-int8 as run", 3.34724) == (
        "| `bnb-int8 as run` | 3.3472 | 3.3472 | +0.0000 |  |  |  |"
    )


def test_the_made_up_board_is_ranked_to_the_same_bytes_and_another_seed_to_others():
    from harness.publish.ranking import rank as ranking

    made = board_speed.cells(200)
    assert len(made) == 200
    board = ranking.rank(made, "made-up")
    assert board_speed.digest(board) == board_speed.digest(ranking.rank(made[::-1], "made-up"))
    assert board_speed.digest(board) != board_speed.digest(ranking.rank(board_speed.cells(200, seed=1), "made-up"))
    assert [row.submission.name for row in board.rows] == ["entry-0003", "entry-0004"]


def test_jobs_that_wait_are_told_apart_and_end_as_finished(tmp_path, monkeypatch):
    from harness.run.job import Settings

    jobs = ray_nodes.jobs_of(3, tmp_path)
    assert len({job.cells[0].key for job in jobs}) == len({job.submission.name for job in jobs}) == 3
    monkeypatch.setenv(ray_nodes.SECONDS, "0")
    ended, stages = [], []
    ray_nodes.wait_and_finish(jobs[1], {}, Settings(cache=""), emit=ended.append, on_stage=stages.append)
    assert [(result.cell, result.status) for result in ended] == [(jobs[1].cells[0], "finished")]
    assert stages == ["wait"]


@pytest.mark.slow
def test_a_node_does_the_jobs_that_wait(monkeypatch):
    pytest.importorskip("ray")

    monkeypatch.setenv(ray_nodes.SECONDS, "0.5")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    assert ray_nodes.measure(1, 2) >= 1.0
