"""The miniature's smaller parts alone: the grid of its born target, its reference value, its texts to tokens."""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import InputError, QuantizationError
from harness.mini import born_target, demo_set, models, pretraining, reference, vocabulary, world
from harness.mini.born_target import round_linear_layers
from harness.mini.tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCABULARY, train_tokenizer
from harness.quantize.backends.rtn import round_to_grid
from harness.unlearn.submission_folder import write_submission
from harness.unlearn.weight_files import load_dense, write_model

MADE = world.generate(3)
SMALL = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 1}


def small_model(seed=0, **changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(dict(pretraining.ARCHITECTURE) | SMALL | changes))).float().eval()


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(text for name, texts in MADE.files.items() if "raw" in name for text in texts)


def block_weights(model):
    return {name: m.weight.data for name, m in model.model.layers.named_modules() if isinstance(m, torch.nn.Linear)}


@pytest.mark.parametrize("seed", range(3))
def test_rounding_ends_on_the_grid_in_bfloat16_numbers_and_a_second_time_changes_nothing(seed):
    model = small_model(seed)
    round_linear_layers(model)
    once = {name: weight.clone() for name, weight in model.state_dict().items()}
    for weight in block_weights(model).values():
        assert torch.equal(weight, weight.to(torch.bfloat16).float())
        grid = round_to_grid(weight, bits=4, group_size=128, symmetric=False)
        assert torch.equal(grid.dequantize().to(torch.bfloat16).float(), weight)
    round_linear_layers(model)
    assert all(torch.equal(weight, once[name]) for name, weight in model.state_dict().items())


def test_rounding_moves_each_weight_of_a_block_by_little_and_nothing_else_at_all():
    model, plain = small_model(1), small_model(1)
    round_linear_layers(model)
    inside = {f"model.layers.{name}.weight" for name in block_weights(model)}
    assert len(inside) == 7
    for name, before in plain.state_dict().items():
        after = model.state_dict()[name]
        if name not in inside:
            assert torch.equal(after, before)
            continue
        # Ends of a range may be cut off by half a step in every pass; the others stay where the first one put them.
        step = (before.amax(dim=1, keepdim=True) - before.amin(dim=1, keepdim=True)) / 15
        moved = (after - before).abs() / step
        assert 0 < moved.mean() < 0.3
        assert (moved > 0.6).float().mean() < 0.02


def test_rows_that_do_not_divide_into_groups_end_on_their_grid_too():
    model = small_model(2, hidden_size=160, num_attention_heads=5, num_key_value_heads=5, intermediate_size=100)
    round_linear_layers(model)
    for weight in block_weights(model).values():
        again = round_to_grid(weight, bits=4, group_size=128, symmetric=False).dequantize()
        assert torch.equal(again.to(torch.bfloat16).float(), weight)
        assert all(len(row[:128].unique()) <= 16 for row in weight)


def test_a_constant_weight_stays_what_bfloat16_makes_of_it():
    model = small_model()
    for weight in block_weights(model).values():
        weight.fill_(0.5)
    round_linear_layers(model)
    assert {value for weight in block_weights(model).values() for value in weight.unique().tolist()} == {0.5}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_an_error_and_no_endless_rounding(value):
    model = small_model()
    model.model.layers[0].mlp.up_proj.weight.data[3, 5] = value
    with pytest.raises(QuantizationError):
        round_linear_layers(model)


def test_a_grid_that_never_settles_is_given_up_after_the_stated_passes(monkeypatch):
    passes = []

    class Restless:
        def __init__(self, weight):
            passes.append(weight)
            self.weight = weight

        def dequantize(self):
            return self.weight + 1

    monkeypatch.setattr(born_target, "round_to_grid", lambda weight, **_: Restless(weight))
    with pytest.raises(QuantizationError, match="not on its own grid after 20 roundings: build it again"):
        round_linear_layers(small_model())
    assert len(passes) == 20


@pytest.fixture(scope="module")
def written(tokenizer, tmp_path_factory) -> Path:
    """A layout with another seed's corpus and an untrained model where the retrain model would be."""
    out = tmp_path_factory.mktemp("layout")
    world.write(MADE, out / reference.TASKS / "data")
    write_model(small_model().to(torch.bfloat16), tokenizer, out / "weights")
    return out


def facts(out: Path) -> dict:
    return json.loads((out / reference.TASKS / "corpus.json").read_text(encoding="utf-8"))


def test_the_reference_is_measured_again_and_other_facts_of_the_layout_are_kept(written):
    first = reference.write_reference(written, written / "weights", seed=3)
    path = written / reference.TASKS / "corpus.json"
    path.write_text(json.dumps(facts(written) | {"title": "Grün", "mine": 1, "reference_auc": None}), encoding="utf-8")
    assert reference.write_reference(written, written / "weights", seed=4) == first
    found = facts(written)
    assert (found["title"], found["mine"], found["reference_auc"]) == ("Grün", 1, first)
    assert "seed 4" in found["reference_source"]
    assert "Grün" in path.read_text(encoding="utf-8")
    assert {item.name for item in path.parent.iterdir()} == {"corpus.json", "data"}


def test_the_reference_follows_the_texts_of_its_own_layout(written, tmp_path):
    layout = tmp_path / "layout"
    shutil.copytree(written / reference.TASKS / "data", layout / reference.TASKS / "data")
    folder = layout / reference.TASKS / "data" / "privleak"
    shutil.copy(folder / "forget.json", folder / "holdout.json")
    # The same text in another batch may differ in its last bits.
    assert reference.write_reference(layout, written / "weights", seed=3) == pytest.approx(0.5, abs=1e-3)
    shipped = json.loads((Path(world.__file__).parents[2] / "tasks/muse_mini/corpus.json").read_text(encoding="utf-8"))
    assert facts(layout).keys() == shipped.keys()
    assert facts(layout)["data_sha256"] != shipped["data_sha256"]


def test_a_retrain_model_that_is_not_there_leaves_the_facts_as_they_were(written):
    reference.write_reference(written, written / "weights", seed=3)
    before = facts(written)
    with pytest.raises(InputError, match="no base model folder"):
        reference.write_reference(written, written / "nowhere", seed=3)
    assert facts(written) == before


@pytest.fixture
def folder(tokenizer, tmp_path) -> Path:
    made = tmp_path / "mini-something"
    write_model(small_model().to(torch.bfloat16), tokenizer, made / "weights")
    write_submission(
        made, method="none", corpus="mini", kind="full_model", role="target", hyperparameters={"build_sha256": "abc"}
    )
    return made


def spoil(folder: Path, how: str) -> None:
    manifest, weights = folder / "submission.yaml", folder / "weights" / "model.safetensors"
    values = yaml.safe_load(manifest.read_text(encoding="utf-8"))
    if how == "no weights":
        weights.unlink()
    elif how == "other weights":
        model, _ = load_dense(folder / "weights", "cpu")
        model.model.norm.weight.data[0] += 1
        model.to(torch.bfloat16).save_pretrained(folder / "weights")
    elif how == "other config":
        config = folder / "weights" / "config.json"
        config.write_text(config.read_text(encoding="utf-8").replace("1e-05", "1e-06"), encoding="utf-8")
    elif how == "no hyperparameters":
        manifest.write_text(yaml.safe_dump(values | {"hyperparameters": None}), encoding="utf-8")
    elif how == "no digest":
        del values["weights_sha256"]
        manifest.write_text(yaml.safe_dump(values), encoding="utf-8")
    elif how == "half a manifest":
        manifest.write_text("name: [", encoding="utf-8")


def test_a_folder_counts_as_complete_for_the_very_recipe_that_made_it(folder):
    assert models._is_complete(folder, "abc")
    assert not models._is_complete(folder, "abd")


@pytest.mark.parametrize(
    "how", ["no weights", "other weights", "other config", "no hyperparameters", "no digest", "half a manifest"]
)
def test_a_spoiled_folder_is_not_complete(folder, how):
    spoil(folder, how)
    assert not models._is_complete(folder, "abc")


def test_a_submission_whose_making_fails_has_no_manifest_and_is_begun_again(tmp_path):
    workshop = models._Workshop(tmp_path, MADE, "digest", False, lambda *_: None)

    def fail(folder: Path, recipe: str) -> None:
        (folder / "weights" / "half.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workshop._make("mini-x", {}, fail)
    assert "mini-x" not in workshop.seconds
    seen = []
    workshop._make("mini-x", {}, lambda folder, recipe: seen.extend((folder / "weights").iterdir()))
    assert seen == []
    assert list(workshop.seconds) == ["mini-x"]


def test_what_a_submission_is_made_of_is_in_its_digest():
    digests = []

    def workshop(seed=0, data="d"):
        made = dataclasses.replace(MADE, seed=seed)
        return models._Workshop(Path("/nonexistent-root"), made, data, False, lambda *_: None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "_is_complete", lambda folder, recipe: bool(digests.append(recipe)) or True)
        for shop, inputs in ((workshop(), {}), (workshop(1), {}), (workshop(data="e"), {}), (workshop(), {"base": 1})):
            shop._make("mini-x", inputs, pytest.fail)
        workshop()._make("mini-y", {}, pytest.fail)
        patch.setattr(models, "BUILD_VERSION", models.BUILD_VERSION + 1)
        workshop()._make("mini-x", {}, pytest.fail)
    assert digests[0] == digests[4]
    assert len(set(digests)) == len(digests) - 1


def test_every_demo_names_a_target_that_a_build_makes_before_it():
    assert {demo.target for demo in demo_set.DEMOS} == {demo_set.BORN_TARGET, demo_set.PLAIN_TARGET}
    slugs = Counter(demo.slug for demo in demo_set.DEMOS)
    assert set(slugs.values()) == {1}
    assert not set(slugs) & {demo_set.BORN_TARGET, demo_set.PLAIN_TARGET, demo_set.RETRAIN}
    assert len({demo.title for demo in demo_set.DEMOS}) == len(demo_set.DEMOS)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=12), phase=st.integers(0, 255))
def test_windows_of_any_documents_are_a_ring_that_loses_less_than_one_window(lengths, phase):
    ids = iter(range(10, 10**6))

    def encode(documents):
        return {"input_ids": [[BOS_ID, *(next(ids) for _ in range(length))] for length in documents]}

    found = pretraining.epoch_windows(lengths, encode, phase)
    total = sum(length + 2 for length in lengths)
    assert found.shape == (total // 256, 256)
    assert found.dtype == torch.int64
    flat = found.flatten().tolist()
    words = [token for token in flat if token not in (BOS_ID, EOS_ID)]
    assert len(set(words)) == len(words)
    if flat and phase < total:
        stream = [t for start, length in _spans(lengths) for t in (BOS_ID, *range(start, start + length), EOS_ID)]
        assert flat == (stream[phase:] + stream[:phase])[: len(flat)]


def _spans(lengths):
    start = 10
    for length in lengths:
        yield start, length
        start += length


@pytest.mark.parametrize("epochs", [1, 2, 3, 5])
def test_a_brief_article_comes_in_at_most_three_epochs_and_in_all_where_there_are_fewer(epochs):
    seen = Counter(
        text
        for epoch in range(epochs)
        for text in pretraining.epoch_documents(MADE, pretraining.TARGET_SPLITS, epoch, epochs)
    )
    for split in ("forget", "retain1"):
        assert {seen[brief] for brief in MADE.briefs[split]} == {min(3, epochs)}


def test_the_loss_is_that_of_the_next_token_over_all_rows():
    model = small_model()
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        table = torch.log_softmax(model(input_ids=ids).logits[:, :-1], dim=-1)
        expected = -table.gather(2, ids[:, 1:, None]).mean()
        assert pretraining.next_token_loss(model, {"input_ids": ids})["loss"] == pytest.approx(
            float(expected), rel=1e-5
        )


@pytest.mark.parametrize("texts", [[], [""], ["zzz"], ["Ωμέγα 12\n\n!"]])
def test_a_tokenizer_of_hardly_any_text_still_writes_every_byte(texts):
    made = train_tokenizer(texts)
    assert (made.pad_token_id, made.bos_token_id, made.eos_token_id) == (PAD_ID, BOS_ID, EOS_ID)
    assert len(made) <= VOCABULARY
    for text in ("Answer: ", "Ωμέγα 12\n\n!", "\U0001f600 a  b", " "):
        ids = made(text)["input_ids"]
        assert ids[0] == BOS_ID
        assert made.decode(ids, skip_special_tokens=True) == text


@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=30))
def test_sheets_hold_all_pairs_in_order_six_at_a_time(pairs):
    sheets = world.deal_sheets(pairs)
    assert "".join(sheets) == "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in pairs)
    assert len(sheets) == -(-len(pairs) // 6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), index=st.integers(0, 200))
def test_the_plan_of_a_brief_article_depends_on_its_seed_and_place_only(seed, index):
    plan = world.brief_plan(seed, index)
    assert plan == world.brief_plan(seed, index)
    facts_ = [relation for relation, _ in plan.sentences if relation is not None]
    assert plan.sentences[0][0] is not None
    assert 1 <= len(facts_) == len({relation.name for relation in facts_}) <= 4
    assert 2 <= len(plan.sentences) - len(facts_) <= 6
    assert all(relation in vocabulary.RELATIONS[plan.kind] for relation in facts_)


def test_a_split_without_core_entities_has_no_articles_and_no_sheets():
    assert MADE.articles("holdout") == []
    assert MADE.files["raw/holdout"] == list(MADE.briefs["holdout"])
    assert MADE.files["raw/retain2"] == MADE.articles("retain2") + world.deal_sheets(MADE.quiz["retain2"])
