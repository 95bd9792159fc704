import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.errors import InputError
from harness.unlearn.recipes import load_recipe
from harness.unlearn.trainer import LOG_FILE, unlearn

LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHORT = {"window": 16, "batch_size": 2, "max_steps": 2, "learning_rate": 1e-2}


def run(base: Path, out: Path, texts: list[str], name: str, *, seed: int = 0, **overrides: object):
    recipe = load_recipe(name, **(SHORT | overrides))
    return unlearn(
        recipe, base=base, tokenizer=base, forget_texts=texts[:2], retain_texts=texts[2:4], out=out, seed=seed,
        base_name="some-target",
    )  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", ["ga", "ga_gdr", "ga_klr", "npo", "npo_gdr", "npo_klr"])
@pytest.mark.parametrize("rank", [0, 2])
def test_every_recipe_trains_all_of_the_model_or_an_adapter(small_model, tmp_path, texts, name, rank):
    log = run(small_model, tmp_path / "out", texts, name, lora_rank=rank)
    assert len(log.steps) == 2
    parts = {"loss", "forget"} if log.recipe.retain_loss == "none" else {"loss", "forget", "retain"}
    assert all(set(step.losses) == parts for step in log.steps)
    file = "adapter_model.safetensors" if rank else "model.safetensors"
    after = load_file(tmp_path / "out" / file)
    before = load_file(small_model / "model.safetensors")
    moved = [
        n for n in after if (".lora_B." in n and bool(after[n].any())) or (n in before and after[n].ne(before[n]).any())
    ]
    assert len(moved) == (14 if rank else len(before))
    assert bool(log.retain_windows) == (log.recipe.retain_loss != "none")


def test_the_first_losses_are_those_of_the_starting_model(small_model, tmp_path, texts):
    npo = run(small_model, tmp_path / "npo", texts, "npo_klr").steps[0].losses
    assert npo["forget"] == pytest.approx(20 * 0.6931472, rel=1e-4)
    assert npo["retain"] == pytest.approx(0.0, abs=1e-6)
    assert run(small_model, tmp_path / "npo2", texts, "npo_klr").steps[1].losses["retain"] > 0


def test_npo_s_reference_stays_the_starting_model_over_the_epochs(small_model, tmp_path, texts):
    """One window a step and a step so large that a reference taken later would give another loss."""
    steps = run(small_model, tmp_path / "out", texts, "npo", window=128, epochs=3, max_steps=0, lora_rank=2).steps
    forget = [step.losses["forget"] for step in steps]
    assert forget[0] == pytest.approx(20 * 0.6931472, rel=1e-4)
    assert forget[0] > forget[1] > forget[2]


def test_only_windows_that_come_are_scored_for_the_reference(small_model, tmp_path, texts, monkeypatch):
    from harness.unlearn import losses, trainer

    rows: list[int] = []
    whole = losses.sequence_log_prob
    monkeypatch.setattr(
        trainer.losses, "sequence_log_prob", lambda logits, labels: (rows.append(len(labels)), whole(logits, labels))[1]
    )
    run(small_model, tmp_path / "out", texts, "npo", batch_size=1, window=4, max_steps=3)
    assert rows == [1] * 6  # three before training, three in it, of some twenty windows


def test_a_model_with_tied_embeddings_and_a_tokenizer_without_bos_is_unlearned_too(small_model, tmp_path, texts):
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    base = tmp_path / "base"
    config = LlamaConfig(
        vocab_size=1024, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.float16).save_pretrained(base)
    plain = json.loads((small_model / "tokenizer.json").read_text()) | {"post_processor": None}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(plain)), eos_token="</s>", pad_token="</s>"
    )
    tokenizer.save_pretrained(base)
    for rank in (0, 2):
        log = run(base, tmp_path / str(rank), texts, "ga_gdr", lora_rank=rank)
        assert len(log.steps) == 2
    after = load_file(tmp_path / "0/model.safetensors")
    assert "lm_head.weight" not in after
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}
    tied = AutoModelForCausalLM.from_pretrained(tmp_path / "0")
    assert tied.lm_head.weight.data_ptr() == tied.model.embed_tokens.weight.data_ptr()


def test_klr_takes_the_starting_model_as_reference_with_and_without_adapters(small_model, tmp_path, texts):
    """The same update, once as an adapter and once merged, diverges from the start by the same amount."""
    for rank in (0, 2):
        steps = run(small_model, tmp_path / str(rank), texts, "ga_klr", lora_rank=rank, max_steps=3, window=64).steps
        assert steps[0].losses["retain"] == pytest.approx(0.0, abs=1e-6)
        assert 0 < steps[1].losses["retain"] < steps[2].losses["retain"]


def test_the_retain_weight_is_in_the_loss(small_model, tmp_path, texts):
    losses = run(small_model, tmp_path / "out", texts, "ga_gdr", retain_weight=3.0).steps[0].losses
    assert losses["loss"] == pytest.approx(losses["forget"] + 3 * losses["retain"], rel=1e-6)


def test_pieces_are_trained_without_end_tokens_and_the_log_and_the_manifest_s_settings_say_so(
    small_model, tmp_path, texts
):
    whole = run(small_model, tmp_path / "whole", texts, "ga_gdr", window=4)
    pieces = run(small_model, tmp_path / "pieces", texts, "ga_gdr", window=4, text_end="none")
    assert pieces.steps[0].losses != whole.steps[0].losses
    assert pieces.recipe.settings()["text_end"] == "none"
    assert json.loads((tmp_path / "pieces" / LOG_FILE).read_text())["recipe"]["text_end"] == "none"
    assert "text_end" not in json.loads((tmp_path / "whole" / LOG_FILE).read_text())["recipe"]
    assert pieces.recipe.digest != whole.recipe.digest


def test_gradient_ascent_makes_the_forget_text_less_likely(small_model, tmp_path, texts):
    steps = run(small_model, tmp_path / "out", texts, "ga", batch_size=64, max_steps=6).steps
    assert steps[-1].losses["forget"] < steps[0].losses["forget"]


def test_the_retain_term_makes_the_retain_text_more_likely(small_model, tmp_path, texts):
    steps = run(small_model, tmp_path / "out", texts, "npo_gdr", batch_size=64, max_steps=6, retain_weight=5.0).steps
    assert steps[-1].losses["retain"] < steps[0].losses["retain"]


def test_a_full_model_is_written_in_the_base_s_type_with_its_tokenizer(small_model, tmp_path, texts):
    run(small_model, tmp_path / "out", texts, "ga_gdr")
    before, after = (load_file(folder / "model.safetensors") for folder in (small_model, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert all(not torch.equal(before[name], after[name]) for name in before if "proj" in name)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config.get("use_cache", True)
    assert (tmp_path / "out/tokenizer.json").is_file()


def test_lora_leaves_the_base_alone_and_writes_all_seven_modules_of_each_block(small_model, tmp_path, texts):
    before = digests(small_model)
    run(small_model, tmp_path / "out", texts, "ga_gdr", lora_rank=2)
    assert digests(small_model) == before
    adapter = load_file(tmp_path / "out/adapter_model.safetensors")
    assert len(adapter) == 2 * 2 * len(LORA_MODULES)
    assert all(".lora_A." in name or ".lora_B." in name for name in adapter)
    assert any(bool(tensor.abs().max() > 0) for name, tensor in adapter.items() if ".lora_B." in name)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", LOG_FILE,
    }  # fmt: skip


def test_an_adapter_changes_only_what_it_sits_on(small_model, tmp_path, texts):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run(small_model, tmp_path / "out", texts, "ga_gdr", lora_rank=2)
    base = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    after = PeftModel.from_pretrained(base, tmp_path / "out").merge_and_unload().state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if any(module in name for module in LORA_MODULES)}


def test_no_file_names_a_path_of_this_machine(small_model, tmp_path, texts):
    for rank in (0, 2):
        out = tmp_path / str(rank)
        run(small_model, out, texts, "ga_gdr", lora_rank=rank)
        for path in out.iterdir():
            content = path.read_bytes()
            assert str(small_model).encode() not in content
            assert str(tmp_path).encode() not in content
    assert json.loads((tmp_path / "2/adapter_config.json").read_text())["base_model_name_or_path"] == "some-target"


@pytest.mark.parametrize("overrides", [{}, {"lora_rank": 2, "lora_dropout": 0.2}])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(small_model, tmp_path, texts, overrides):
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        torch.manual_seed(hash(name) % 1000)  # whatever ran before must not matter
        run(small_model, tmp_path / name, texts, "npo_gdr", seed=seed, **overrides)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    weights = "adapter_model.safetensors" if overrides else "model.safetensors"
    assert digests(tmp_path / "one")[weights] != digests(tmp_path / "other")[weights]


def test_the_log_in_the_folder_is_the_log_that_comes_back(small_model, tmp_path, texts):
    log = run(small_model, tmp_path / "out", texts, "npo_gdr", lora_rank=2)
    saved = json.loads((tmp_path / "out" / LOG_FILE).read_text())
    assert saved["recipe"]["learning_rate"] == 1e-2
    assert [step["losses"] for step in saved["steps"]] == [dict(step.losses) for step in log.steps]
    assert saved["trained_parameters"] == log.trained_parameters
    assert "seconds" not in saved
    adapter = load_file(tmp_path / "out/adapter_model.safetensors")
    assert log.trained_parameters == sum(tensor.numel() for tensor in adapter.values())


def test_a_loss_that_is_not_finite_becomes_null_in_the_file(small_model, tmp_path, texts):
    log = run(small_model, tmp_path / "out", texts, "ga")
    broken = dataclasses.replace(log.steps[0], losses={"loss": float("nan")}, grad_norm=float("inf"))
    dataclasses.replace(log, steps=(broken,)).save(tmp_path / "log.json")
    step = json.loads((tmp_path / "log.json").read_text(), parse_constant=pytest.fail)["steps"][0]
    assert (step["losses"], step["grad_norm"]) == ({"loss": None}, None)


def test_bfloat16_updates_leave_nothing_between_two_bfloat16_numbers(small_model, tmp_path, texts):
    exact = run(small_model, tmp_path / "exact", texts, "ga_gdr", learning_rate=1e-6, max_steps=4)
    rounded = run(
        small_model, tmp_path / "rounded", texts, "ga_gdr", learning_rate=1e-6, max_steps=4,
        update_precision="bfloat16",
    )  # fmt: skip
    assert exact.steps[-1].losses != rounded.steps[-1].losses
    before, after = (load_file(f / "model.safetensors") for f in (small_model, tmp_path / "rounded"))
    same = sum(int((before[name] == after[name]).sum()) for name in before)
    assert same / sum(tensor.numel() for tensor in before.values()) > 0.9


def test_progress_counts_the_steps(small_model, tmp_path, texts):
    seen: list[tuple[int, int]] = []
    unlearn(
        load_recipe("ga", **SHORT), base=small_model, tokenizer=small_model, forget_texts=texts, retain_texts=[],
        out=tmp_path / "out", on_progress=lambda done, steps: seen.append((done, steps)),
    )  # fmt: skip
    assert seen == [(1, 2), (2, 2)]


def test_a_folder_that_holds_something_is_never_written_over(small_model, tmp_path, texts):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        run(small_model, tmp_path, texts, "ga")
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_missing_or_empty_base_is_an_input_error(small_model, tmp_path, texts):
    recipe = load_recipe("ga", **SHORT)
    (tmp_path / "empty").mkdir()
    for base in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(InputError, match="base model"):
            unlearn(recipe, base=base, tokenizer=small_model, forget_texts=texts, retain_texts=[], out=tmp_path / "o")
    with pytest.raises(InputError, match="tokenizer"):
        unlearn(
            recipe, base=small_model, tokenizer=tmp_path / "nowhere", forget_texts=texts, retain_texts=[],
            out=tmp_path / "o",
        )  # fmt: skip


def test_a_model_without_linear_modules_in_its_blocks_is_an_input_error(small_model, tmp_path, texts):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=1024, n_positions=32, n_embd=8, n_layer=1, n_head=1)).save_pretrained(
        tmp_path / "gpt2"
    )
    with pytest.raises(InputError, match="LoRA finds nothing to adapt"):
        unlearn(
            load_recipe("ga", **SHORT, lora_rank=2), base=tmp_path / "gpt2", tokenizer=small_model,
            forget_texts=texts, retain_texts=[], out=tmp_path / "out",
        )  # fmt: skip
