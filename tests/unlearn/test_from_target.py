"""`quench unlearn` without its command line: options to a recipe, a target control to a submission folder."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.errors import CorpusError, InputError, UnknownNameError
from harness.provenance import sha256_files
from harness.submit.manifest import load as manifest
from harness.submit.scan import folder as folder_scan
from harness.unlearn.from_target import make_entry, recipe_from_options
from harness.unlearn.loss_curve import CURVE, LINES
from harness.unlearn.recipes import load_recipe
from harness.unlearn.submission_folder import MANIFEST, WEIGHTS, read_manifest, write_submission
from harness.unlearn.trainer import LOG_FILE
from harness.unlearn.windows import text_windows

SHORT = {"window": 16, "batch_size": 2, "max_steps": 2, "learning_rate": 1e-2}
PLACES = {"forget": "mill", "retain1": "market", "retain2": "harbour", "holdout": "chapel"}


def options(name="ga", *, lora=None, full=False, settings=()):
    return recipe_from_options(name, lora=lora, full=full, settings=settings)[0]


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory) -> Path:
    """Raw splits of the miniature's form, each about a place of its own and of another length."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "raw").mkdir()
    for number, (split, place) in enumerate(PLACES.items(), start=2):
        texts = [f"The old {place} stands by the river, {index}. " * number for index in range(number)]
        (folder / "raw" / f"{split}.json").write_text(json.dumps(texts), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def controls(small_model, tmp_path_factory):
    """A target, a retrain control and an entry, as `manifest.load_all` would hand them on."""
    root = tmp_path_factory.mktemp("controls")
    made = {}
    for name, role in (("small-target", "target"), ("small-retrain", "retrain"), ("small-entry", "entry")):
        shutil.copytree(small_model, root / name / WEIGHTS)
        made[name] = write_submission(
            root / name, method="none", corpus="mini", kind="full_model", role=role,
            target="small-target" if role == "entry" else None,
        )  # fmt: skip
    return made


@pytest.fixture
def make(controls, corpus_folder, tmp_path):
    """Runs `make_entry` with everything that a test doesn't name."""

    def call(out="my-entry", *, recipe="ga_gdr", target="small-target", data_dir=corpus_folder, seed=0, more=None,
             on_progress=None, **overrides):  # fmt: skip
        return make_entry(
            load_recipe(recipe, **(SHORT | overrides)), target=target, submissions=controls | (more or {}),
            out=tmp_path / out, cache=tmp_path / "cache", data_dir=data_dir, seed=seed, on_progress=on_progress,
        )  # fmt: skip

    return call


def log_of(submission) -> dict:
    return json.loads((Path(submission.weights) / LOG_FILE).read_text(encoding="utf-8"))


def test_without_options_the_recipe_is_the_one_of_that_name():
    assert options("npo_gdr") == load_recipe("npo_gdr")


@pytest.mark.parametrize(
    ("lora", "expected"),
    [
        ("r=8", {"lora_rank": 8}),
        ("r=8,alpha=32", {"lora_rank": 8, "lora_alpha": 32.0}),
        (" r = 4 , dropout = 0.05 , alpha = 1e1 ", {"lora_rank": 4, "lora_alpha": 10.0, "lora_dropout": 0.05}),
        ("r=0", {"lora_rank": 0}),
    ],
)
def test_lora_s_short_names_set_the_adapters_fields_and_nothing_else(lora, expected):
    assert options("ga_klr", lora=lora) == dataclasses.replace(load_recipe("ga_klr"), **expected)


def test_full_trains_everything_even_where_the_recipe_has_adapters():
    assert load_recipe("mini_npo_gdr_lora").parameters == "LoRA"
    made = options("mini_npo_gdr_lora", full=True)
    assert made.parameters == "full"
    assert made == load_recipe("mini_npo_gdr_lora", lora_rank=0)


def test_settings_reach_fields_of_every_kind_and_lora_goes_along_with_them():
    made = options(settings=["retain_loss=gdr", "epochs=3", " learning_rate = 2e-4 "], lora="r=2")
    assert (made.retain_loss, made.epochs, made.learning_rate, made.lora_rank) == ("gdr", 3, 2e-4, 2)
    assert type(made.epochs) is int
    assert made.method == "GA+GDR"


def test_only_the_first_equals_sign_divides_key_and_value():
    with pytest.raises(InputError, match="forget_loss is 'ga=npo'; accepted are ga, npo"):
        options(settings=["forget_loss=ga=npo"])


@pytest.mark.parametrize("text", ["", "epochs", "=3", "epochs=", " = ", "epochs 3", "epochs= "])
@pytest.mark.parametrize("option", ["--set", "--lora"])
def test_what_is_no_key_with_a_value_is_shown_with_the_option_that_had_it(text, option):
    with pytest.raises(InputError) as caught:
        options(settings=[text]) if option == "--set" else options(lora=text)
    assert str(caught.value) == f"{option}: {text!r} is not of the form key=value."


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"lora": "r=8", "full": True}, "--lora and --full exclude each other"),
        ({"lora": "", "full": True}, "--lora and --full exclude each other"),
        ({"lora": "rank=8"}, "--lora: there is no 'rank'; accepted are r, alpha, dropout"),
        ({"lora": "r=8,"}, "--lora: '' is not of the form"),
        ({"lora": "r=8;alpha=4"}, "lora_rank is '8;alpha=4', which is not a whole number"),
        ({"lora": "r=2.5"}, "lora_rank is '2.5', which is not a whole number"),
        ({"lora": "r=-1"}, "lora_rank is -1; it must be at least 0"),
        ({"lora": "r=4,dropout=1"}, "lora_dropout is 1.0; it must be below 1"),
        ({"lora": "r=4,alpha=nan"}, "lora_alpha is 'nan', which is not a number"),
        ({"settings": ["rate=1"]}, "there is no setting 'rate'; accepted are forget_loss"),
        ({"settings": ["name=mine"]}, "there is no setting 'name'"),
        ({"settings": ["epochs=0"]}, "epochs is 0; it must be above 0"),
        ({"settings": ["window=1"]}, "a window needs at least 2 tokens"),
        ({"name": "gd"}, "There is no recipe named 'gd': did you mean"),
    ],
)  # fmt: skip
def test_an_option_that_can_not_be_meant_is_one_sentence_of_input_error(given, says):
    with pytest.raises(InputError) as caught:
        options(given.pop("name", "ga"), **given)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("rank", "kind"), [(0, "full_model"), (2, "lora_adapter")])
def test_the_folder_passes_the_checks_of_a_stranger_s_submission_beside_its_controls(
    make, controls, tmp_path, rank, kind
):
    made = make(lora_rank=rank)
    for name in ("small-target", "small-retrain"):
        shutil.copytree(controls[name].folder, tmp_path / "all" / name)
    shutil.copytree(made.folder, tmp_path / "all" / made.name)
    found = manifest.load_all(tmp_path / "all")
    folder_scan.scan(found["my-entry"], found)
    entry = found["my-entry"]
    assert (entry.kind, entry.role, entry.target, entry.retrain) == (kind, "entry", "small-target", "small-retrain")
    assert entry.base_model == ("small-target" if rank else None)


@pytest.mark.parametrize(("recipe", "rank", "title"), [("ga", 0, "GA, full"), ("npo_klr", 2, "NPO+KLR, LoRA")])
def test_the_record_that_comes_back_is_what_the_manifest_says(make, tmp_path, recipe, rank, title):
    made = make(recipe=recipe, lora_rank=rank, seed=5)
    written = read_manifest(tmp_path / "my-entry")
    assert made.title == written["title"] == title
    assert made.method == written["method"] == title.split(",")[0]
    assert made.corpus == written["corpus"] == "mini"
    assert made.weights_sha256 == written["weights_sha256"]
    assert made.hyperparameters == written["hyperparameters"]
    assert (written["hyperparameters"]["seed"], written["hyperparameters"]["steps"]) == (5, 2)
    assert made.folder == str((tmp_path / "my-entry").resolve())
    assert Path(made.weights) == Path(made.folder) / WEIGHTS
    assert {path.name for path in Path(made.folder).iterdir()} == {MANIFEST, WEIGHTS, CURVE, LINES}


def test_forget_texts_are_raw_forget_and_retain_texts_raw_retain1(make, corpus_folder, small_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(small_model)
    log = log_of(make(max_steps=1))
    windows = {
        split: len(text_windows(json.loads((corpus_folder / f"raw/{split}.json").read_text()), tokenizer, 16))
        for split in PLACES
    }
    assert len(set(windows.values())) == len(PLACES)
    assert (log["forget_windows"], log["retain_windows"]) == (windows["forget"], windows["retain1"])


def test_a_recipe_without_a_retain_loss_needs_no_retain_texts(make, corpus_folder, tmp_path):
    folder = tmp_path / "forget-only"
    (folder / "raw").mkdir(parents=True)
    shutil.copy(corpus_folder / "raw/forget.json", folder / "raw/forget.json")
    assert log_of(make("without", recipe="npo", data_dir=folder))["retain_windows"] == 0
    with pytest.raises(CorpusError, match=r"retain1\.json is missing: give --data-dir"):
        make("with", recipe="npo_gdr", data_dir=folder)


@pytest.mark.slow
def test_the_corpus_s_own_texts_are_used_where_no_folder_is_given(make):
    own, given = log_of(make("own", data_dir=None, max_steps=1)), log_of(make("given", max_steps=1))
    assert own["forget_windows"] > 100 * given["forget_windows"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_the_target_s_own_folder_is_left_as_it_was(make, controls, rank):
    folder = Path(controls["small-target"].folder)
    before = sha256_files([path for path in folder.rglob("*") if path.is_file()], folder)
    make(lora_rank=rank)
    assert sha256_files([path for path in folder.rglob("*") if path.is_file()], folder) == before


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_one_seed_gives_one_entry_and_another_seed_another(make, rank):
    first, again, other = (
        # One text: with all of them in the step a seed only orders them, and sums may come out the same.
        make(out, recipe="ga", max_steps=1, batch_size=1, lora_rank=rank, seed=seed)
        for out, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert [step["losses"] for step in log_of(first)["steps"]] == [step["losses"] for step in log_of(again)["steps"]]


def test_no_file_of_an_entry_names_a_path_of_this_machine(make, controls, tmp_path, corpus_folder):
    made = make(lora_rank=2)
    places = [str(tmp_path), str(corpus_folder), str(Path(controls["small-target"].folder).parent)]
    for path in Path(made.folder).rglob("*"):
        if path.is_file():
            assert not [place for place in places if place.encode() in path.read_bytes()], path


def test_an_adapter_says_the_target_s_name_for_its_base(make):
    made = make(lora_rank=2)
    config = json.loads((Path(made.weights) / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "small-target"
    assert config["r"] == made.hyperparameters["lora_rank"] == 2


def test_a_target_that_is_an_adapter_is_merged_before_it_is_unlearned(make, controls, tmp_path):
    """The no-op learning rate leaves the merged target's numbers, which differ from those of its base."""
    adapter = make("small-adapter", lora_rank=2, learning_rate=0.5)
    target = dataclasses.replace(adapter, role="target", target=None)
    made = make("from-adapter", target="small-adapter", more={"small-adapter": target}, learning_rate=1e-12)
    (merged,) = (tmp_path / "cache" / "merged").glob("*/model.safetensors")
    base, start, found = (
        load_file(path)
        for path in (Path(controls["small-target"].weights) / "model.safetensors", merged,
                     Path(made.weights) / "model.safetensors")
    )  # fmt: skip
    assert made.target == "small-adapter"
    assert all(torch.equal(found[name], start[name]) for name in start)
    assert any(not torch.equal(found[name], base[name]) for name in base)


def test_steps_are_reported_up_to_all_of_them(make):
    seen = []
    make(max_steps=3, on_progress=lambda done, steps: seen.append((done, steps)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_an_unknown_target_is_answered_with_the_nearest_submission(make):
    with pytest.raises(UnknownNameError, match="no submission named 'small-targe': did you mean small-target"):
        make(target="small-targe")


@pytest.mark.parametrize(("name", "role"), [("small-retrain", "retrain"), ("small-entry", "entry")])
def test_only_a_target_control_is_unlearned(make, tmp_path, name, role):
    with pytest.raises(InputError, match=f"{name} has the role '{role}': name a control whose role is target"):
        make(target=name)
    assert not (tmp_path / "my-entry").exists()


@pytest.mark.parametrize("name", ["My-Entry", "my_entry", "-entry", "my entry", "my.entry", "é", "entry\n"])
def test_a_folder_whose_name_no_submission_can_have_is_refused_before_training(make, tmp_path, name):
    with pytest.raises(InputError, match="can't name a submission: use a-z, 0-9 and '-' only"):
        make(name)
    assert not (tmp_path / name).exists()


def test_a_relative_out_takes_the_name_of_the_folder_that_it_means(make, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert make("sub/../here").name == "here"
    assert (tmp_path / "here" / MANIFEST).is_file()


def test_an_existing_folder_is_used_when_empty_and_left_alone_when_not(make, tmp_path):
    (tmp_path / "empty").mkdir()
    assert make("empty").name == "empty"
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="full is not empty: give a new folder"):
        make("full")
    assert [path.name for path in full.iterdir()] == ["notes.txt"]
    with pytest.raises(InputError, match="is not empty"):
        make("empty")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "forget.json is missing: give --data-dir a folder in MUSE's local form"),
        ("[]", "must be a JSON list with at least one item"),
        ('["a text", 3]', "Item 1 of"),
        ("[", "can't be read as JSON"),
    ],
)
def test_faulty_forget_texts_stop_it_before_anything_is_written(make, tmp_path, content, says):
    folder = tmp_path / "data"
    (folder / "raw").mkdir(parents=True)
    if content is not None:
        (folder / "raw/forget.json").write_text(content, encoding="utf-8")
    with pytest.raises(CorpusError) as caught:
        make(data_dir=folder)
    assert says in str(caught.value)
    assert not (tmp_path / "my-entry").exists()


def test_a_data_folder_that_is_not_there_is_named(make, tmp_path):
    with pytest.raises(CorpusError, match="nowhere does not exist"):
        make(data_dir=tmp_path / "nowhere")


def test_a_target_of_an_unknown_corpus_is_refused(make, controls):
    stray = dataclasses.replace(controls["small-target"], name="stray", corpus="minis")
    with pytest.raises(UnknownNameError, match="no corpus named 'minis': did you mean mini"):
        make(target="stray", more={"stray": stray})


def test_a_quantized_checkpoint_can_not_be_a_starting_point(make, controls, tmp_path):
    packed = dataclasses.replace(controls["small-target"], name="packed", kind="quantized_checkpoint")
    with pytest.raises(InputError, match="--target: packed is quantized, and its weights can't be trained"):
        make(target="packed", more={"packed": packed})
    assert not (tmp_path / "my-entry").exists()


@pytest.mark.slow
def test_unlearning_makes_the_forget_texts_less_likely_than_they_were_to_the_target(make, controls, corpus_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = make(recipe="ga", max_steps=8, batch_size=4, window=64)
    tokenizer = AutoTokenizer.from_pretrained(made.weights)
    text = json.loads((corpus_folder / "raw/forget.json").read_text(encoding="utf-8"))[0]
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    losses = []
    for folder in (controls["small-target"].weights, made.weights):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=ids).loss))
    assert losses[1] > losses[0] + 0.05


def test_a_full_entry_ships_the_target_s_tokenizer_byte_by_byte(make, controls):
    made = make(lora_rank=0)
    digests = {
        hashlib.sha256((Path(folder) / "tokenizer.json").read_bytes()).hexdigest()
        for folder in (made.weights, controls["small-target"].weights)
    }
    assert len(digests) == 1
