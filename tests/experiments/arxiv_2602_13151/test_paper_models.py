"""The eight models of the paper: which they are, that they are made, kept and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness import paths
from harness.cli.main import app
from harness.errors import InputError, UnknownNameError
from harness.experiments.arxiv_2602_13151 import models as paper_models
from harness.records import Submission
from harness.submit.manifest import load as manifest
from harness.unlearn.submission_folder import WEIGHTS, write_submission

EIGHT = {(method, kind) for method in ("GA+GDR", "GA+KLR", "NPO+GDR", "NPO+KLR") for kind in ("full", "LoRA")}


@pytest.fixture(scope="module")
def shipped() -> dict[str, Submission]:
    return manifest.load_all(paths.content_dir("submissions"))


@pytest.mark.parametrize("corpus", paper_models.CORPORA)
def test_they_are_four_methods_with_all_parameters_and_with_lora(corpus: str) -> None:
    found = paper_models.models(corpus, "a-target")
    assert {(model.recipe.method, model.recipe.parameters) for model in found} == EIGHT
    assert len(found) == len({model.name for model in found}) == 8
    assert all(model.target == "a-target" and model.seed_of is None for model in found)


@pytest.mark.parametrize("corpus", ["books", "news"])
def test_the_paper_s_corpora_take_the_paper_s_recipes(corpus: str) -> None:
    for model in paper_models.models(corpus, "a-target"):
        assert "2602.13151" in model.recipe.source
        assert (model.recipe.lora_rank == 0) or model.recipe.name.endswith(f"_{corpus}")


def test_further_seeds_are_named_as_seeds_of_the_first() -> None:
    found = paper_models.models("mini", "a-target", seeds=(3, 5))
    assert len(found) == 16
    firsts = {model.name: model for model in found if model.seed_of is None}
    assert {model.seed for model in firsts.values()} == {3}
    for model in found:
        if model.seed_of is not None:
            assert model.seed == 5
            assert firsts[model.seed_of].recipe == model.recipe


def test_the_contrast_adds_two_models_of_another_target() -> None:
    found = paper_models.models("mini", "a-target", contrast="plain-one")
    other = [model for model in found if model.target == "plain-one"]
    assert [(model.recipe.method, model.recipe.parameters) for model in other] == [
        ("GA+GDR", "full"),
        ("GA+GDR", "LoRA"),
    ]
    assert len(found) == 10


def test_steps_shorten_every_training() -> None:
    assert {model.recipe.max_steps for model in paper_models.models("news", "a-target", steps=2)} == {2}
    with pytest.raises(UnknownNameError, match="news"):
        paper_models.models("newz", "a-target")


def test_the_target_is_the_corpus_s_only_one_or_the_one_asked_for(shipped: dict[str, Submission]) -> None:
    assert paper_models.target_of("mini", shipped, None).name == "mini-target-4bit"
    assert paper_models.target_of("mini", shipped, "mini-target-plain").name == "mini-target-plain"
    with pytest.raises(InputError, match=r"no single target control here .none.: .*--target"):
        paper_models.target_of("books", shipped, None)
    with pytest.raises(UnknownNameError, match="mini-target-plain"):
        paper_models.target_of("mini", shipped, "mini-target-plane")


def test_quantizers_that_are_not_here_are_left_out_with_their_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.quantize.backends import rtn

    monkeypatch.setattr(rtn.RoundToNearest, "unavailable_reason", lambda self, spec, device: "no rtn today.")
    specs, missing = paper_models.available(("reference", "rtn-4bit-g128"), "cpu")
    assert [spec.name for spec in specs] == ["reference"]
    assert missing == {"rtn-4bit-g128": "no rtn today."}


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Submission]:
    """A target of Llama-2-7B's shape, only a few thousand times smaller, and a corpus of four sentences."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from harness.mini.tokenizer import train_tokenizer

    root = tmp_path_factory.mktemp("books")
    (root / "raw").mkdir()
    for split in ("forget", "retain1", "retain2", "holdout"):
        (root / "raw" / f"{split}.json").write_text(json.dumps([f"The {split} lies by the river. " * 4] * 2))
    folder = root / "small-7b" / WEIGHTS
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=64, intermediate_size=172, num_hidden_layers=2, num_attention_heads=32,
        num_key_value_heads=32, rms_norm_eps=1e-5, tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    train_tokenizer(["The river lies by the mill."] * 3).save_pretrained(folder)
    return {"small-7b": write_submission(root / "small-7b", method="none", corpus="books", kind="full_model",
                                         role="target")}  # fmt: skip


@pytest.fixture(scope="module")
def made(books: dict[str, Submission], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    _make(books, out)
    return out


def _make(books: dict[str, Submission], out: Path, steps: int = 2) -> dict[str, Submission]:
    data = Path(books["small-7b"].folder).parent
    wanted = paper_models.models("books", "small-7b", steps=steps)
    return paper_models.make(wanted, books, out, cache=out / "cache", retrain=None, data_dir=data)


def test_two_steps_of_every_recipe_make_eight_submissions_that_can_be_checked(
    books: dict[str, Submission], made: Path
) -> None:
    found = _make(books, made)
    assert {(one.method, "LoRA" if one.kind == "lora_adapter" else "full") for one in found.values()} == EIGHT
    for one in found.values():
        assert one.target == "small-7b"
        assert one.corpus == "books"
        assert one.hyperparameters["steps"] <= 2
        assert "2602.13151" in one.hyperparameters["source"]
        assert one.hyperparameters["update_precision"] == "float32"


def test_what_is_there_is_kept_and_what_is_another_s_is_refused(books: dict[str, Submission], made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.glob("submissions/*/weights/*.safetensors")}
    assert len(before) == 8
    _make(books, made)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(InputError, match=r"other settings \(max_steps\).*--out"):
        _make(books, made, steps=3)


def test_a_dry_run_says_what_would_be_made_and_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = CliRunner().invoke(
        app, ["reproduce", "2602.13151", "--dry-run", "--json", "--seeds", "0,1", "--out", str(tmp_path / "out")],
        catch_exceptions=False,
    )  # fmt: skip
    rows = json.loads(shown.stdout)["rows"]
    assert len(rows) == 20
    assert {row["seed"] for row in rows} == {0, 1}
    assert "bnb-fp4" in rows[0]["quantizers"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("1234.56789",), "2602.13151"),
        (("2602.13151", "--corpus", "books"), "--target"),
        (("2602.13151", "--seeds", "0,0"), "--seeds"),
        (("2602.13151", "--seeds", "x"), "--seeds"),
        (("2602.13151", "--set", "epochs=3"), "epochs"),
        (("2602.13151", "--corpus", "wiki", "--target", "mini-target-4bit"), "wiki"),
    ],
)
def test_what_can_not_be_meant_is_one_sentence_and_exit_code_2(arguments: tuple[str, ...], says: str) -> None:
    shown = CliRunner().invoke(app, ["reproduce", *arguments, "--dry-run"])
    assert shown.exit_code == 2
    assert says in shown.stderr


@pytest.mark.slow
def test_a_short_run_on_the_miniature_scores_every_model_and_judges_nothing(tmp_path: Path) -> None:
    shown = CliRunner().invoke(
        app, ["reproduce", "2602.13151", "--steps", "2", "--limit", "2", "--out", str(tmp_path / "out"), "--json"],
        catch_exceptions=False,
    )  # fmt: skip
    assert shown.exit_code == 0
    document = json.loads(shown.stdout)
    assert document["paragraph"].startswith("No claim can be judged")
    assert len(list((tmp_path / "out/submissions").iterdir())) == 10
