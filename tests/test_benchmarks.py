"""The benchmarks' contenders do the same work and agree; the GPU check runs as far as a CPU allows."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


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
    import contenders

    model, tokenizer = mini
    asked = contenders.documents("mini", metric, tokenizer, None, 3)
    ours = contenders.Quench(model, tokenizer, None).run(metric, asked)
    assert contenders.agreement(ours, contenders.ReferenceLoop(model, tokenizer).run(metric, asked)) < 1e-6
    stock = contenders.StockLmEval(model, tokenizer, batch_size=2).run(metric, asked)
    assert len(stock) == len(ours) == (6 if metric == "privleak" else 3)
    if metric != "privleak":
        assert contenders.agreement(ours, stock) == 0


def test_a_difference_of_one_document_shows_in_the_agreement():
    import contenders

    assert contenders.agreement([0.1, 0.5], [0.1, 0.75]) == 0.25
    with pytest.raises(ValueError, match="zip"):
        contenders.agreement([0.1], [0.1, 0.2])


def test_without_a_card_the_gpu_check_says_so_in_one_sentence():
    done = subprocess.run([sys.executable, "gpu_check.py"], cwd=BENCHMARKS, capture_output=True, text=True)
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("There is no CUDA device here")


def test_the_gpu_checks_parity_and_table_run_on_a_small_model(capsys):
    import gpu_check
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


def test_flops_of_a_pass_count_weights_twice_a_token_and_attention(capsys):
    import gpu_check
    import torch

    model = gpu_check.random_llama(TINY, "cpu", torch.float32)
    tokenizer = gpu_check.wide_tokenizer()
    one, two = (gpu_check.Work(prompts=(text,), texts=()) for text in ("a b c", "a b c a b c a b c"))
    assert gpu_check.prompt_flops(model, tokenizer, one) < gpu_check.prompt_flops(model, tokenizer, two)


def test_peak_memory_counts_what_is_held_at_once():
    import torch
    import working_memory

    def one_after_the_other():
        for _ in range(3):
            torch.zeros(1_000_000).sum()

    def together():
        return sum(part.sum() for part in [torch.zeros(1_000_000) for _ in range(3)])

    torch.zeros(1)
    assert 4_000_000 <= working_memory.peak_bytes(one_after_the_other) < 6_000_000
    assert 12_000_000 <= working_memory.peak_bytes(together) < 14_000_000
