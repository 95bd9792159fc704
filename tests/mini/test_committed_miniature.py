"""What the repository ships of the miniature, one test per folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.mini import demo_set
from harness.mini.born_target import round_linear_layers
from harness.paths import content_dir
from harness.submit.manifest import load as manifest
from harness.submit.scan import folder as folder_scan
from harness.unlearn.recipes import load_recipe
from harness.unlearn.trainer import LOG_FILE
from harness.unlearn.weight_files import load_dense

SUBMISSIONS = content_dir("submissions")
CONTROLS = (demo_set.PLAIN_TARGET, demo_set.BORN_TARGET, demo_set.RETRAIN)
DEMOS = {demo.slug: demo for demo in demo_set.DEMOS}


def weights(slug: str) -> Path:
    return SUBMISSIONS / slug / "weights"


@pytest.fixture(scope="module")
def submissions():
    return manifest.load_all(SUBMISSIONS)


@pytest.mark.parametrize("slug", [*CONTROLS, *DEMOS])
def test_a_shipped_submission_passes_its_scan_and_has_the_weights_it_states(slug, submissions):
    assert submissions[slug].weights_sha256
    assert (submissions[slug].license, submissions[slug].authors) == ("Apache-2.0", ("Quench",))
    folder_scan.scan(submissions[slug], submissions)


@pytest.mark.parametrize("slug", DEMOS)
def test_a_shipped_entry_was_made_by_the_recipe_as_it_stands_now(slug, submissions):
    recipe, entry = load_recipe(DEMOS[slug].recipe), submissions[slug]
    log = json.loads((weights(slug) / LOG_FILE).read_text())
    assert entry.hyperparameters.items() >= recipe.settings().items()
    assert entry.hyperparameters["steps"] == len(log["steps"])
    assert entry.notes == DEMOS[slug].notes
    assert entry.target == DEMOS[slug].target
    for key, value in recipe.settings().items():
        assert log["recipe"][key] == value


def test_the_born_target_is_what_its_own_quantization_gives_back_bit_by_bit():
    model, dtype = load_dense(weights(demo_set.BORN_TARGET), "cpu")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    round_linear_layers(model)
    assert dtype == torch.bfloat16
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_born_target_is_the_plain_one_rounded():
    plain, born = (load_file(weights(name) / "model.safetensors") for name in CONTROLS[:2])
    for name, tensor in plain.items():
        if "proj" not in name:
            assert torch.equal(tensor, born[name])
            continue
        groups = tensor.float().view(tensor.shape[0], -1, 128)
        half_step = (groups.amax(2) - groups.amin(2)) / 15 / 2
        distance = (born[name].float().view_as(groups) - groups).abs().amax(2)
        # Half a step, and a little for float16 scales and bfloat16 levels; the few groups
        # that had to be rounded again until their grid stood still have moved further.
        assert float((distance < 1.1 * half_step).float().mean()) > 0.97
        assert bool((distance < 4.0 * half_step).all())


def test_the_retrain_control_and_the_plain_target_come_from_the_same_tokenizer():
    files = [(weights(name) / "tokenizer.json").read_bytes() for name in CONTROLS]
    assert files[0] == files[1] == files[2]


def test_the_corpus_facts_name_the_retrain_model_s_auc_and_pin_the_data():
    from harness.score.corpora.catalogue import load_corpus

    corpus = load_corpus("mini")
    assert corpus.reference_auc is not None
    assert 0.4 < corpus.reference_auc < 0.6
    assert demo_set.RETRAIN in str(corpus.reference_source)
    assert corpus.pinned_sha256 == load_corpus("mini", data_dir=corpus.folder / "data").data_sha256


def test_shipped_weights_stay_small():
    sizes = [path.stat().st_size for path in SUBMISSIONS.rglob("*") if path.is_file()]
    assert sum(sizes) < 25_000_000


@pytest.mark.slow
def test_the_shipped_reference_is_what_the_shipped_retrain_model_scores():
    from transformers import AutoTokenizer

    from harness.score.corpora.catalogue import load_corpus
    from harness.score.evaluation import membership_auc

    folder = weights(demo_set.RETRAIN)
    model, _ = load_dense(folder, "cpu")
    found = membership_auc(model.eval(), AutoTokenizer.from_pretrained(folder), "mini", data_dir=None, device="cpu")
    assert found == pytest.approx(load_corpus("mini").reference_auc, abs=2e-3)


@pytest.mark.slow
def test_the_shipped_no_op_is_its_recipe_run_again(tmp_path):
    """The cheapest entry, trained anew: equal up to the last bits that another machine may change."""
    from harness.score.corpora.catalogue import load_corpus, load_split
    from harness.unlearn.trainer import unlearn

    corpus = load_corpus("mini")
    texts = {split: [item["text"] for item in load_split(corpus, "raw", split)] for split in ("forget", "retain1")}
    base = weights(demo_set.BORN_TARGET)
    unlearn(
        load_recipe("mini_noop_lora"), base=base, tokenizer=base, forget_texts=texts["forget"],
        retain_texts=texts["retain1"], out=tmp_path / "out", seed=0,
    )  # fmt: skip
    shipped = load_file(weights("mini-noop-lora") / "adapter_model.safetensors")
    again = load_file(tmp_path / "out/adapter_model.safetensors")
    assert shipped.keys() == again.keys()
    for name, tensor in shipped.items():
        assert torch.allclose(tensor, again[name], atol=1e-5, rtol=1e-2), name
