"""The 7B-shaped path in small, and the cost model's arithmetic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import board_cost, seven_billion

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two layers of a small width below an own cache."""

    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "cache"))
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 4}
    seven_billion.make(tmp_path, 2, shape, 128)
    return tmp_path


def test_every_stage_runs_streamed_and_says_what_whole_models_say(small: Path) -> None:
    import torch

    from harness import memory

    found = {}
    # With several threads the last bits of a product depend on where its operands lie.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for mode in ("always", "never"):
        with memory.streaming(mode):
            found[mode] = [seven_billion.run_stage(stage, small, 20) for stage in seven_billion.STAGES]
    torch.set_num_threads(threads)
    assert [row["stage"] for row in found["always"]] == list(seven_billion.STAGES)
    for streamed, whole in zip(found["always"], found["never"], strict=True):
        assert streamed["peak_bytes"] > 2**27
        assert streamed.get("mean_logprob") == whole.get("mean_logprob")
        assert streamed.get("survival_ratio") == whole.get("survival_ratio")
    four_bit, reference, survival = found["always"][2:]
    assert (four_bit["streamed"], found["never"][2]["streamed"]) == (True, False)
    assert (four_bit["layers"], four_bit["levels"], four_bit["tokens"]) == (14, 16, 40)
    assert four_bit["bits_per_weight"] == pytest.approx(4.25, abs=0.1)
    assert four_bit["mean_logprob"] != reference["mean_logprob"]
    assert "levels" not in reference
    assert 0.5 < survival["survival_ratio"] < 1.5


def test_the_merge_is_in_the_cache_and_moved_what_the_adapter_names(small: Path) -> None:
    import torch
    from safetensors.torch import load_file

    seven_billion.run_stage("merge", small, 20)
    (merged,) = (small / "cache" / "merged").iterdir()
    base, after = (load_file(folder / "model.safetensors") for folder in (small / "target" / "weights", merged))
    moved = {name.split(".")[-2] for name in base if not torch.equal(base[name], after[name])}
    assert moved == {"q_proj", "v_proj", "down_proj"}


@pytest.mark.slow
def test_the_script_prints_a_table_with_a_line_for_each_stage(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.seven_billion", str(tmp_path / "work"), "--layers", "2",
               "--hidden", "32", "--stages", "intake,rtn-4bit", "--words", "8", "--stream", "always"]  # fmt: skip
    environ = {**os.environ, "QUENCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1",
               "PYTHONPATH": str(ROOT)}  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environ)
    lines = done.stdout.splitlines()
    assert lines[0] == "0.00 billion parameters, 0.0 GB in bfloat16"
    assert [json.loads(line)["stage"] for line in lines[1:3]] == ["intake", "rtn-4bit"]
    assert lines[3] == "| stage | seconds | peak, GB |"
    assert [line.split("|")[1].strip() for line in lines[5:]] == ["intake", "rtn-4bit: quantize", "rtn-4bit: score"]


def test_a_board_s_cost_is_jobs_times_the_seconds_of_one() -> None:
    board = board_cost.Board(
        submissions=3, quantizers=2, corpora=2, controls=2, parameters=1e9, tokens=5e5, steps=100, tflops=100.0,
        step_seconds=0.1, quantize_seconds=20.0, target_share=0.5, loading_seconds=5.0,
    )  # fmt: skip
    assert board.jobs == (3 + 2) * 2 * 2
    assert board.petaflop == pytest.approx(2 * 1e9 * 5e5 / 1e15)
    assert board.score_seconds == pytest.approx(1e15 / 100e12 + 100 * 0.1)
    assert board.job_seconds == pytest.approx(5 + 1.5 * 20 + 20)
    assert board.gpu_hours == pytest.approx(20 * 55 / 3600)


def test_the_printed_arithmetic_holds_and_follows_its_options() -> None:
    def lines(*options: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.board_cost", *options], cwd=ROOT, capture_output=True, text=True,
            check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        return done.stdout.splitlines()

    plain, faster = lines(), lines("--tflops", "200", "--quantize-seconds", "60")
    assert "| jobs | (50 entries + 2 controls) x 20 x 2 | 2,080 |" in plain
    assert "| cells | 2,080 x 4 metrics | 8,320 |" in plain
    assert any("9.9 PFLOP / 20 TFLOP/s | 494 s" in line for line in plain)
    assert any("9.9 PFLOP / 200 TFLOP/s | 49 s" in line for line in faster)
    hours = [int(found[-1].split("|")[-2].split()[0]) for found in (plain, faster)]
    assert hours[0] > 2 * hours[1] > 0
