"""How a machine goes about a recipe: interrupted and gone on, in pieces, in half precision, on other models."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.errors import InputError
from harness.unlearn.execution import Execution, execution_from
from harness.unlearn.from_target import CHECKPOINTS, make_entry, recipe_from_options
from harness.unlearn.loss_curve import CURVE, LINES
from harness.unlearn.recipes import load_recipe
from harness.unlearn.submission_folder import MANIFEST, WEIGHTS, read_manifest, write_submission
from harness.unlearn.trainer import LOG_FILE, unlearn
from harness.unlearn.weight_files import load_dense

SHORT = {"window": 8, "batch_size": 2, "epochs": 4, "learning_rate": 1e-2}


class Cut(Exception):
    """The machine goes down."""


def cut_after(step: int):
    def report(done: int, steps: int) -> None:
        if done == step:
            raise Cut

    return report


def run(base: Path, out: Path, texts: list[str], name: str = "ga_gdr", *, execution: Execution | None = None,
        checkpoints: Path | None = None, on_progress=None, **overrides: object):  # fmt: skip
    return unlearn(
        load_recipe(name, **(SHORT | overrides)), base=base, tokenizer=base, forget_texts=texts[:2],
        retain_texts=texts[2:4], out=out, base_name="some-target", execution=execution, checkpoints=checkpoints,
        on_progress=on_progress,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("npo_klr", {}),
        ("npo_gdr", {"lora_rank": 2, "lora_dropout": 0.3}),
        ("ga_gdr", {"update_precision": "bfloat16"}),
    ],
)
def test_a_run_that_was_cut_off_ends_with_the_bytes_of_an_unbroken_one(small_model, tmp_path, texts, name, overrides):
    how = Execution(checkpoint_every=2)
    whole = run(small_model, tmp_path / "whole", texts, name, **overrides)
    with pytest.raises(Cut):
        run(small_model, tmp_path / "cut", texts, name, execution=how, checkpoints=tmp_path / "kept",
            on_progress=cut_after(5), **overrides)  # fmt: skip
    assert not (tmp_path / "cut").exists()
    seen: list[int] = []
    again = run(small_model, tmp_path / "cut", texts, name, execution=how, checkpoints=tmp_path / "kept",
                on_progress=lambda done, steps: seen.append(done), **overrides)  # fmt: skip
    assert seen[0] == 5, "it went on after the checkpoint of step 4"
    assert again.steps == whole.steps
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes(), path.name


def test_a_checkpoint_that_was_cut_off_itself_is_passed_over(small_model, tmp_path, texts):
    how = Execution(checkpoint_every=2)
    with pytest.raises(Cut):
        run(small_model, tmp_path / "out", texts, execution=how, checkpoints=tmp_path / "kept",
            on_progress=cut_after(5))  # fmt: skip
    (tmp_path / "kept/checkpoint-4/trainer_state.json").write_text('{"global_st', encoding="utf-8")
    seen: list[int] = []
    run(small_model, tmp_path / "out", texts, execution=how, checkpoints=tmp_path / "kept",
        on_progress=lambda done, steps: seen.append(done))  # fmt: skip
    assert seen[0] == 3


def test_windows_in_pieces_add_up_to_the_batch(small_model, tmp_path, texts):
    """One step on windows that are all full: the sum is the same but for the order of additions."""
    whole = run(small_model, tmp_path / "whole", texts, "npo_gdr", batch_size=3, window=4, max_steps=1)
    pieces = run(small_model, tmp_path / "pieces", texts, "npo_gdr", batch_size=3, window=4, max_steps=1,
                 execution=Execution(windows_at_once=1))  # fmt: skip
    assert pieces.steps[0].losses == pytest.approx(whole.steps[0].losses, rel=1e-5)
    assert pieces.steps[0].grad_norm == pytest.approx(whole.steps[0].grad_norm, rel=1e-4)


def test_gradient_checkpointing_gives_the_same_losses(small_model, tmp_path, texts):
    plain = run(small_model, tmp_path / "plain", texts, lora_rank=2)
    saving = run(small_model, tmp_path / "saving", texts, lora_rank=2, execution=Execution(gradient_checkpointing=True))
    assert [step.losses for step in saving.steps] == [pytest.approx(step.losses, rel=1e-5) for step in plain.steps]


def test_mixed_precision_moves_the_losses_a_little_and_trains_in_float32(small_model, tmp_path, texts):
    plain = run(small_model, tmp_path / "plain", texts, max_steps=1).steps[0].losses["loss"]
    mixed = run(small_model, tmp_path / "mixed", texts, max_steps=1, execution=Execution(mixed_precision="bf16"))
    assert mixed.steps[0].losses["loss"] != plain
    assert mixed.steps[0].losses["forget"] == pytest.approx(-7.0, abs=1.5)


def test_an_adapter_s_forward_is_that_of_the_merged_model(small_model, tmp_path, texts):
    from peft import PeftModel
    from transformers import AutoTokenizer

    from harness.submit.checkpoint.merge_adapter import merged_model

    run(small_model, tmp_path / "out", texts, lora_rank=4, lora_dropout=0.05)
    adapted = PeftModel.from_pretrained(load_dense(small_model, "cpu")[0], tmp_path / "out").eval()
    tokens = AutoTokenizer.from_pretrained(small_model)(texts[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        own = adapted(tokens).logits
        with adapted.disable_adapter():
            plain = adapted(tokens).logits
        merged = merged_model(small_model, tmp_path / "out")(tokens).logits
    assert torch.allclose(merged, own, atol=1e-5)
    assert not torch.allclose(plain, own, atol=1e-3)


def test_the_options_of_the_machine_are_told_from_the_recipe_s():
    recipe, how = recipe_from_options(
        "ga_gdr", lora=None, full=False,
        settings=["epochs=3", "mixed_precision=bf16", "windows_at_once=2", "gradient_checkpointing=true",
                  "checkpoint_every=50"],
    )  # fmt: skip
    assert recipe.epochs == 3
    assert how == Execution(mixed_precision="bf16", windows_at_once=2, gradient_checkpointing=True, checkpoint_every=50)
    assert set(how.settings()) == {"mixed_precision", "windows_at_once", "gradient_checkpointing"}


@pytest.mark.parametrize(
    "values",
    [{"mixed_precision": "int8"}, {"optimizer": "sgd"}, {"windows_at_once": "-1"}, {"checkpoint_every": "x"},
     {"gradient_checkpointing": "yes"}],
)  # fmt: skip
def test_an_option_of_the_machine_that_makes_no_sense_names_itself(values):
    with pytest.raises(InputError, match=next(iter(values))):
        execution_from(values)


def test_an_optimizer_whose_library_is_missing_says_so(monkeypatch):
    monkeypatch.setattr("harness.unlearn.execution.find_spec", lambda name: None)
    with pytest.raises(InputError, match="bitsandbytes"):
        execution_from({"optimizer": "paged_adamw_8bit"})


@pytest.fixture
def make(small_model, tmp_path):
    folder = tmp_path / "corpus/raw"
    folder.mkdir(parents=True)
    for split in ("forget", "retain1", "retain2", "holdout"):
        (folder / f"{split}.json").write_text(json.dumps([f"The {split} stands by the river. " * 6] * 2))
    target = tmp_path / "board/small-target"
    target.mkdir(parents=True)
    (target / WEIGHTS).symlink_to(small_model)
    controls = {
        "small-target": write_submission(target, method="none", corpus="mini", kind="full_model", role="target")
    }

    def call(out: str, *, on_progress=None, seed=0, **how: object):
        return make_entry(
            load_recipe("ga_gdr", **SHORT), target="small-target", submissions=controls, out=tmp_path / out,
            cache=tmp_path / "cache", data_dir=tmp_path / "corpus", seed=seed, execution=Execution(**how),
            on_progress=on_progress,
        )  # fmt: skip

    return call


def test_an_entry_goes_on_where_it_was_cut_off_and_leaves_no_checkpoint(make, tmp_path):
    with pytest.raises(Cut):
        make("mine", checkpoint_every=2, on_progress=cut_after(3))
    (left,) = (tmp_path / "mine").iterdir()
    assert left.name.startswith(CHECKPOINTS)
    with pytest.raises(InputError, match="checkpoints of another run"):
        make("mine", checkpoint_every=2, seed=1)
    made = make("mine", checkpoint_every=2)
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {MANIFEST, WEIGHTS, CURVE, LINES}
    assert made.weights_sha256 == make("unbroken").weights_sha256


def test_an_entry_says_how_its_updates_were_rounded_and_what_the_machine_did(make, tmp_path):
    make("mine", mixed_precision="bf16")
    told = read_manifest(tmp_path / "mine")["hyperparameters"]
    assert (told["update_precision"], told["mixed_precision"]) == ("float32", "bf16")


def test_the_curve_has_a_line_for_each_loss_and_the_log_one_for_each_step(make, tmp_path):
    made = make("mine")
    picture = (tmp_path / "mine" / CURVE).read_text()
    assert picture.count("<polyline") == 3
    assert all(f">{name}</text>" in picture for name in ("loss", "forget", "retain"))
    lines = [json.loads(line) for line in (tmp_path / "mine" / LINES).read_text().splitlines()]
    steps = json.loads((Path(made.weights) / LOG_FILE).read_text())["steps"]
    assert [line["forget"] for line in lines] == [step["losses"]["forget"] for step in steps]


SHAPES = ("Qwen2", "Qwen3", "Mistral", "Gemma2", "GPTNeoX")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [0, 2])
def test_other_architectures_are_unlearned_too(shape, rank, small_model, tmp_path, texts):
    import transformers

    values = {"vocab_size": 1024, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
              "num_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}  # fmt: skip
    if shape != "GPTNeoX":
        values |= {"num_key_value_heads": 1, "head_dim": 8}
    base = tmp_path / "base"
    config = getattr(transformers, f"{shape}Config")(**values)
    getattr(transformers, f"{shape}ForCausalLM")(config).to(torch.bfloat16).save_pretrained(base)
    unlearn(
        load_recipe("npo_gdr", **(SHORT | {"epochs": 1}), max_steps=1, lora_rank=rank), base=base,
        tokenizer=small_model, forget_texts=texts[:1], retain_texts=texts[1:2], out=tmp_path / "out",
    )  # fmt: skip
    written = load_file(next((tmp_path / "out").glob("*.safetensors")))
    if rank:
        assert len(written) == 2 * 2 * (4 if shape == "GPTNeoX" else 7)
    else:
        before = load_file(base / "model.safetensors")
        assert any(not torch.equal(before[name], written[name]) for name in written)


def test_an_encoder_is_refused_with_a_sentence(small_model, tmp_path, texts):
    from transformers import BertConfig, BertForMaskedLM

    BertForMaskedLM(
        BertConfig(vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="BertForMaskedLM generates no text"):
        run(tmp_path / "bert", tmp_path / "out", texts)
