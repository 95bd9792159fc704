"""AutoGPTQ and AutoAWQ: what their worker is handed and what comes back of it; the real libraries in slow tests."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from harness import quantize
from harness.errors import QuantizationError
from harness.quantize import calibration
from harness.quantize.backends.autoawq import _KNOWN as AWQ_MODELS
from harness.quantize.backends.autogptq import _KNOWN as GPTQ_MODELS
from harness.quantize.legacy import environments
from harness.quantize.legacy.environments import Environment
from harness.quantize.models.dense import load_dense
from harness.quantize.rounding.uniform_grid import round_to_grid
from harness.quantize.runners import legacy as legacy_runner
from harness.quantize.runners.legacy import translated
from harness.records import Checkpoint, QuantizedModel
from harness.store.store import Store

from test_packed_awq import layer as awq_layer  # isort: skip
from test_packed_gptq import layer as gptq_layer  # isort: skip

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"dtype": "bfloat16", "hidden_size": 4}, {"torch_dtype": "bfloat16", "hidden_size": 4}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rope_theta": 5e5}),
        ({"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5, "rope_type": "default"}},
         {"rope_theta": 5e5, "partial_rotary_factor": 0.5}),
        ({"rope_parameters": LLAMA3},
         {"rope_theta": 5e5, "rope_scaling": {name: value for name, value in LLAMA3.items() if name != "rope_theta"}}),
        # A config that transformers 4 wrote is in its own words already.
        ({"torch_dtype": "float16", "rope_theta": 1e4, "rope_scaling": None},
         {"torch_dtype": "float16", "rope_theta": 1e4, "rope_scaling": None}),
        ({"rope_parameters": None}, {}),
    ],
)  # fmt: skip
def test_a_config_is_put_into_the_words_of_the_old_transformers(
    given: dict[str, Any], expected: dict[str, Any]
) -> None:
    before = json.dumps(given)
    assert translated(given) == expected
    assert json.dumps(given) == before


def test_rotary_embeddings_that_differ_by_layer_are_refused() -> None:
    rope = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    with pytest.raises(QuantizationError, match="this model has several: choose another backend"):
        translated({"rope_parameters": rope})


class TinyWorker:
    """Takes the worker's place: keeps its jobs, and rounds the block linears as the two libraries store them."""

    def __init__(self) -> None:
        self.jobs: list[Mapping[str, Any]] = []
        self.logs: list[Path] = []
        self.config: dict[str, Any] = {}
        self.files: list[str] = []
        self.norms = 1.0

    def __call__(self, environment: Environment, job: Mapping[str, Any], *, timeout_s: float, log: Path) -> None:
        self.jobs.append(job)
        self.logs.append(log)
        source = Path(job["model"])
        self.config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        self.files = sorted(path.name for path in source.iterdir())
        assert [path.name for path in source.iterdir() if not path.is_symlink()] == ["config.json"]
        tensors = load_file(source / "model.safetensors")
        size = None if job["group_size"] == -1 else job["group_size"]
        for name in [key for key in tensors if key.endswith("_proj.weight")]:
            grid = round_to_grid(
                tensors.pop(name), bits=job["bits"], group_size=size, symmetric=job.get("symmetric", False)
            )
            if job["backend"] == "autogptq":
                parts = gptq_layer(grid.codes, grid.scales, grid.zeros, job["bits"])
                # It writes a bias where there is none.
                parts["bias"] = torch.zeros(grid.codes.shape[0])
            else:
                parts = awq_layer(grid.codes, grid.scales, grid.zeros)
            tensors |= {f"{name.removesuffix('weight')}{part}": value.contiguous() for part, value in parts.items()}
        for name in [key for key in tensors if key.endswith("layernorm.weight")]:
            tensors[name] = tensors[name] * self.norms
        save_file(tensors, Path(job["save_in"]) / "packed.safetensors")
        told = {"bits": job["bits"], "group_size": job["group_size"]}
        if job["backend"] == "autogptq":
            told |= {"quant_method": "gptq", "sym": job["symmetric"], "desc_act": job["desc_act"]}
        else:
            told |= {"quant_method": "awq", "version": "gemm", "zero_point": True}
        config = json.dumps({"quantization_config": told})
        (Path(job["save_in"]) / "config.json").write_text(config, encoding="utf-8")


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TinyWorker:
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "cache"))
    tiny = TinyWorker()
    versions = {"auto-gptq": "0.7.1", "autoawq": "0.2.9"}
    there = Environment(name="legacy", python=Path(sys.executable), worker=Path("worker.py"), versions=versions)
    monkeypatch.setattr(legacy_runner, "installed", lambda name: there)
    monkeypatch.setattr(legacy_runner, "run_worker", tiny)
    return tiny


def _quantize(name: str, checkpoint: Checkpoint, texts: tuple[str, ...], device: str = "cpu") -> QuantizedModel:
    spec, chosen = calibration.prepare(quantize.resolve(name), {"retain": texts})
    return quantize.backend_of(spec).quantize(checkpoint, spec, device=device, calibration=chosen)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("autogptq-4bit-g64-sym", {"bits": 4, "group_size": 64, "symmetric": True, "desc_act": False}),
        ("autogptq-3bit-row-sym", {"bits": 3, "group_size": -1, "symmetric": True, "desc_act": False}),
        ("autogptq-8bit-g128-act", {"bits": 8, "group_size": 128, "symmetric": False, "desc_act": True}),
        ("autoawq-4bit-g64", {"bits": 4, "group_size": 64, "dtype": "bfloat16"}),
    ],
)
def test_the_worker_is_handed_all_that_the_name_says_and_what_comes_back_is_proved(
    name: str,
    told: dict[str, Any],
    worker: TinyWorker,
    checkpoint_of: Callable[[str], Checkpoint],
    calibration_texts: tuple[str, ...],
    tmp_path: Path,
) -> None:
    checkpoint = checkpoint_of("llama")
    quantized = _quantize(name, checkpoint, calibration_texts)
    (job,) = worker.jobs
    assert told.items() <= job.items()
    assert (job["name"], job["backend"]) == (name, name.split("-")[0])
    assert {len(window) for window in job["windows"]} == {64}
    assert job["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(job)) == job
    # The old transformers needs no tokenizer, and its config speaks its language.
    assert worker.files == ["config.json", "model.safetensors"]
    assert worker.config["torch_dtype"] == "bfloat16"
    assert worker.config["rope_theta"] == 10000.0
    assert not {"dtype", "rope_parameters"} & set(worker.config)
    assert worker.logs == [tmp_path / "cache" / "environments" / "logs" / f"{name}-{'0' * 12}.log"]
    assert quantized.proof is not None
    assert quantized.proof.quantized_layers == 14
    assert 0 < quantized.proof.relative_error < 0.3
    assert not Path(job["model"]).exists()
    assert not Path(job["save_in"]).exists()


def test_awq_s_norms_are_those_of_the_quantized_checkpoint_and_its_codes_are_not_handed_on(
    worker: TinyWorker, checkpoint_of: Callable[[str], Checkpoint], calibration_texts: tuple[str, ...]
) -> None:
    worker.norms = 0.5
    quantized = _quantize("autoawq-4bit-g64", checkpoint_of("llama"), calibration_texts)
    assert quantized.layers == {}
    assert torch.equal(quantized.model.model.layers[1].input_layernorm.weight, torch.full((128,), 0.5))
    assert quantized.proof is not None
    assert "norms" in quantized.proof.remarks[1]


def test_a_float16_checkpoint_is_loaded_in_its_own_type(
    worker: TinyWorker, checkpoint_of: Callable[[str], Checkpoint], calibration_texts: tuple[str, ...]
) -> None:
    _quantize("autoawq-4bit-g64", dataclasses.replace(checkpoint_of("llama"), dtype="float16"), calibration_texts)
    assert worker.jobs[0]["dtype"] == "float16"


@pytest.mark.parametrize(
    ("name", "known"),
    [("autogptq-4bit-g64-sym", "auto-gptq is used for gemma, llama, mistral, qwen2"),
     ("autoawq-4bit-g64", "autoawq is used for gemma, llama, mistral, qwen2, qwen3")],
)  # fmt: skip
def test_a_model_of_another_type_is_refused_before_the_worker_starts(
    name: str,
    known: str,
    worker: TinyWorker,
    checkpoint_of: Callable[[str], Checkpoint],
    tmp_path: Path,
    calibration_texts: tuple[str, ...],
) -> None:
    config = hf.GPTNeoXConfig(
        hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=2, vocab_size=96
    )
    hf.GPTNeoXForCausalLM(config).bfloat16().save_pretrained(tmp_path)
    checkpoint = _checkpoint(tmp_path, checkpoint_of("llama"))
    with pytest.raises(QuantizationError, match=rf"^{name} can't quantize a model of type 'gpt_neox': {known}; choose"):
        _quantize(name, checkpoint, calibration_texts)
    assert worker.jobs == []


@pytest.mark.parametrize(("name", "layer"), [("autogptq-4bit-g64-sym", "q_proj"), ("autoawq-4bit-g128", "down_proj")])
def test_a_layer_that_the_layout_has_no_place_for_is_refused_before_the_worker_starts(
    name: str,
    layer: str,
    worker: TinyWorker,
    checkpoint_of: Callable[[str], Checkpoint],
    tmp_path: Path,
    calibration_texts: tuple[str, ...],
) -> None:
    heads = 1 if name.startswith("autogptq") else 4
    hidden = 36 if name.startswith("autogptq") else 128
    hf.LlamaForCausalLM(
        hf.LlamaConfig(hidden_size=hidden, intermediate_size=192, num_attention_heads=heads, num_hidden_layers=2,
                       vocab_size=96)
    ).bfloat16().save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(QuantizationError, match=rf"^{name} can't hold model\.layers\.0\..*{layer}: auto"):
        _quantize(name, _checkpoint(tmp_path, checkpoint_of("llama")), calibration_texts)
    assert worker.jobs == []


def test_what_the_worker_says_when_it_fails_comes_through_as_it_is(
    worker: TinyWorker,
    checkpoint_of: Callable[[str], Checkpoint],
    calibration_texts: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def fail(*given: Any, **named: Any) -> None:
        raise QuantizationError("a-job failed: no such kernel.")

    monkeypatch.setattr(legacy_runner, "run_worker", fail)
    with pytest.raises(QuantizationError, match=r"^a-job failed: no such kernel\.$"):
        _quantize("autogptq-4bit-g64-sym", checkpoint_of("llama"), calibration_texts)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_environment_that_has_gone_since_the_run_was_planned_is_told_so(
    checkpoint_of: Callable[[str], Checkpoint],
    calibration_texts: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path))
    with pytest.raises(QuantizationError, match=r"needs auto-gptq in .*: run quench backends install autogptq autoawq"):
        _quantize("autogptq-4bit-g64-sym", checkpoint_of("llama"), calibration_texts)


def test_versions_are_those_of_the_environment_and_part_of_a_cell_s_key(worker: TinyWorker) -> None:
    found = quantize.discover()
    assert (found["autogptq"].library_version(), found["autoawq"].library_version()) == ("0.7.1", "0.2.9")
    spec = quantize.resolve("autogptq-4bit-g64-sym")
    assert quantize.backend_of(spec).unavailable_reason(spec, "cpu") is None


def _checkpoint(folder: Path, other: Checkpoint) -> Checkpoint:
    """Returns the checkpoint in a folder, with the tokenizer of another one."""
    return dataclasses.replace(other, path=str(folder), sha256="2" * 64)


# From here on the real libraries: slow, and skipped where the environment can't be made.


@pytest.fixture(scope="session")
def legacy() -> Environment:
    """The real environment, made where it is not there yet."""
    found = environments.installed("autogptq")
    if found is None:
        try:
            environments.install(["autogptq", "autoawq"], on_line=print)
        except QuantizationError as error:
            pytest.skip(str(error))
        found = environments.installed("autogptq")
    assert found is not None
    return found


def _model(kind: str) -> Any:
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    sizes: dict[str, Any] = {
        "vocab_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 64, "hidden_size": 128,
        "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "rope_parameters": LLAMA3 if kind == "llama" else rope,
    }  # fmt: skip
    model = getattr(hf, f"{kind.title()}ForCausalLM")(getattr(hf, f"{kind.title()}Config")(**sizes))
    with torch.no_grad():
        for parameter, value in model.named_parameters():
            if parameter.endswith("bias"):
                value.normal_(0, 0.05)
            elif "norm" in parameter:
                value.copy_(torch.rand_like(value) + 0.5)
            elif "proj" in parameter:
                # Columns of different size, so that AWQ's scales are no constant.
                value.mul_(4 * torch.logspace(-0.5, 0.5, value.shape[1])[torch.randperm(value.shape[1])])
            else:
                value.mul_(4)
    return model


@pytest.fixture(scope="session")
def model_of(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_of: Callable[[str], Checkpoint]
) -> Callable[[str], Checkpoint]:
    """Builds (once) a tiny model of a family, with weights large enough for attention to matter."""
    made: dict[str, Checkpoint] = {}

    def build(kind: str) -> Checkpoint:
        if kind not in made:
            torch.manual_seed(7)
            folder = tmp_path_factory.mktemp(kind)
            _model(kind).bfloat16().save_pretrained(folder)
            made[kind] = _checkpoint(folder, checkpoint_of("llama"))
        return made[kind]

    return build


IDS = torch.randint(96, (4, 60), generator=torch.Generator().manual_seed(1))


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()  # type: ignore[no-any-return]


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.slow
def test_the_old_transformers_computes_the_same_function_from_the_translated_config(
    legacy: Environment, model_of: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    kinds = sorted({*GPTQ_MODELS, *AWQ_MODELS})
    for kind in kinds:
        (tmp_path / kind).mkdir()
        spec = quantize.resolve("autoawq-4bit-g64")
        legacy_runner._staged(model_of(kind), tmp_path / kind, spec, kinds)
    code = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
ids = load_file(Path(sys.argv[1]) / "ids.safetensors")["ids"]
for kind in sys.argv[2:]:
    folder = Path(sys.argv[1]) / kind
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    with torch.no_grad():
        save_file({"logits": model(ids).logits.contiguous()}, folder / "logits")
"""
    save_file({"ids": IDS}, tmp_path / "ids.safetensors")
    subprocess.run([str(legacy.python), "-I", "-c", code, str(tmp_path), *kinds], check=True)
    for kind in kinds:
        ours = _logits(load_dense(model_of(kind), device="cpu"))
        assert _distance(load_file(tmp_path / kind / "logits")["logits"], ours) < 1e-4, kind


@pytest.mark.slow
@pytest.mark.parametrize("kind", GPTQ_MODELS)
def test_autogptq_quantizes_every_family_that_it_is_used_for(
    kind: str, legacy: Environment, model_of: Callable[[str], Checkpoint], calibration_texts: tuple[str, ...]
) -> None:
    exact = _logits(load_dense(model_of(kind), device="cpu"))
    plain = _distance(_logits(_quantize("rtn-8bit-g64-sym", model_of(kind), calibration_texts).model), exact)
    quantized = _quantize("autogptq-8bit-g64-sym", model_of(kind), calibration_texts)
    assert quantized.proof is not None
    assert quantized.proof.quantized_layers == 14
    assert quantized.proof.relative_error < 0.02
    assert _distance(_logits(quantized.model), exact) < 1.2 * plain


@pytest.mark.slow
@pytest.mark.parametrize("kind", AWQ_MODELS)
def test_autoawq_quantizes_every_family_that_it_is_used_for(
    kind: str, legacy: Environment, model_of: Callable[[str], Checkpoint], calibration_texts: tuple[str, ...]
) -> None:
    exact = _logits(load_dense(model_of(kind), device="cpu"))
    plain = _distance(_logits(_quantize("rtn-4bit-g64", model_of(kind), calibration_texts).model), exact)
    quantized = _quantize("autoawq-4bit-g64", model_of(kind), calibration_texts)
    assert quantized.proof is not None
    assert quantized.proof.max_levels == 16
    assert quantized.proof.relative_error < 0.13
    # Scales that stay in the weights or don't cancel would make it another function.
    assert _distance(_logits(quantized.model), exact) < 1.2 * plain


@pytest.mark.slow
def test_column_order_and_asymmetric_grids_come_back_too(
    legacy: Environment, model_of: Callable[[str], Checkpoint], calibration_texts: tuple[str, ...]
) -> None:
    errors = {}
    for name in ("autogptq-4bit-g64-act-sym", "autogptq-4bit-g64", "autogptq-4bit-row-sym"):
        proof = _quantize(name, model_of("llama"), calibration_texts).proof
        assert proof is not None
        assert proof.max_levels == 16
        errors[name] = proof.relative_error
    assert errors["autogptq-4bit-g64"] < errors["autogptq-4bit-row-sym"] < 0.4


@pytest.mark.slow
def test_a_zero_point_that_the_format_can_t_store_is_refused_instead_of_stored_wrong(
    legacy: Environment,
    checkpoint_of: Callable[[str], Checkpoint],
    calibration_texts: tuple[str, ...],
    tmp_path: Path,
) -> None:
    torch.manual_seed(7)
    model = _model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, :64].abs_()
    model.bfloat16().save_pretrained(tmp_path)
    checkpoint = _checkpoint(tmp_path, checkpoint_of("llama"))
    match = r"^autogptq-2bit-g64 failed in the environment 'legacy': ValueError: AutoGPTQ can't store the zero point 0"
    with pytest.raises(QuantizationError, match=match):
        _quantize("autogptq-2bit-g64", checkpoint, calibration_texts)
    assert _quantize("autogptq-2bit-g64-sym", checkpoint, calibration_texts).proof is not None


@pytest.mark.slow
def test_what_the_real_library_says_when_it_fails_is_passed_on_in_one_sentence(
    legacy: Environment, model_of: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    spec = dataclasses.replace(quantize.resolve("autoawq-4bit-g64"), bits=3)
    told = {"known": AWQ_MODELS, "options": {"dtype": "bfloat16"}}
    with pytest.raises(QuantizationError) as caught:
        legacy_runner.run(model_of("llama"), spec, [[1, 2, 3]] * 4, tmp_path, **told)  # type: ignore[arg-type]
    said = str(caught.value)
    assert said.startswith("autoawq-4bit-g64 failed in the environment 'legacy': NotImplementedError: Only 4-bit")
    assert said.count("\n") == 0
    log = Path(said.rpartition(" ")[2].rstrip("."))
    assert "Traceback" in log.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_submission_runs_from_end_to_end_under_both(legacy: Environment, tmp_path: Path) -> None:
    store = tmp_path / "store.duckdb"
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli.main", "run", "mini-noop-lora", "--no-controls", "--limit", "2",
         "--quantizers", "autogptq-4bit-g64-sym,autoawq-4bit-g64", "--store", str(store)],
        env=dict(os.environ), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    with Store.open(store, read_only=True) as opened:
        assert len(opened.keys("finished")) == 8
