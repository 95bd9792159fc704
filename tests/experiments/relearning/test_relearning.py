"""The relearning probe: its recipe, when half of the way is done, and one run over a small model."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import InputError
from harness.experiments.relearning import probe as relearning_probe
from harness.experiments.relearning.probe import LEAST_GAP, RelearningRecipe, half_step, load_recipe, measure, relearn
from harness.records import DocumentRecord, Evaluation
from harness.score.corpora.catalogue import load_corpus
from harness.store.relearning import RelearningStep

SMALL = {"documents": 2, "steps": 5, "measure_every": 2, "batch_size": 2, "window": 16, "lora_rank": 2,
         "lora_alpha": 4, "learning_rate": 1e-2, "seed": 0}  # fmt: skip


def curve_of(*values, every=5):
    return [
        RelearningStep(step=every * place, verbmem=value, extraction_strength=0.1, reference_nll=1.0, verbmem_shown=0.9)
        for place, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("values", "goal", "found"),
    [
        ((0.2, 0.3, 0.5, 0.8), 0.8, (10, None)),
        ((0.2, 0.3, 0.49), 0.8, (None, "not within 10 steps")),
        ((0.2, 0.6, 0.3, 0.6), 0.8, (5, None)),
        ((0.5, 0.9), 0.55, (None, f"less than {LEAST_GAP} of VerbMem is missing to its target")),
        ((0.9, 0.9), 0.5, (None, f"less than {LEAST_GAP} of VerbMem is missing to its target")),
        ((0.4, 0.1), 0.6, (None, "not within 5 steps")),
    ],
)
def test_half_of_the_way_is_the_first_measurement_at_or_above_it_or_a_reason(values, goal, found):
    assert half_step(curve_of(*values), goal) == found


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(0, 1))
def test_whatever_the_curve_there_is_a_step_or_a_reason_and_the_step_is_the_first_past_half(values, goal):
    curve = curve_of(*values)
    step, reason = half_step(curve, goal)
    assert (step is None) != (reason is None)
    if step is not None:
        half = (values[0] + goal) / 2
        assert step > 0
        assert values[step // 5] >= half or math.isclose(values[step // 5], half)
        assert all(value < half or math.isclose(value, half) for value in values[: step // 5])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9), st.floats(0, 1))
def test_what_comes_later_never_moves_a_step_that_was_found(values, goal):
    found, _ = half_step(curve_of(*values[:-1]), goal)
    if found is not None:
        assert half_step(curve_of(*values), goal)[0] == found


def test_the_pinned_recipe_is_in_the_package_and_every_setting_is_in_its_digest():
    pinned = load_recipe()
    assert (pinned.documents, pinned.steps, pinned.lora_rank) == (16, 40, 8)
    changed = {field.name: getattr(pinned, field.name) + 1 for field in dataclasses.fields(RelearningRecipe)}
    digests = {dataclasses.replace(pinned, **{name: value}).digest for name, value in changed.items()}
    assert len(digests | {pinned.digest}) == 1 + len(changed)


def test_documents_and_steps_can_be_asked_for_and_nothing_else_moves():
    asked = load_recipe(documents=3, steps=7)
    assert (asked.documents, asked.steps) == (3, 7)
    assert dataclasses.replace(asked, documents=16, steps=40) == load_recipe()


@pytest.mark.parametrize(("given_", "says"), [({"documents": 0}, "--documents is 0"), ({"steps": -1}, "--steps is -1")])
def test_less_than_one_document_or_step_is_refused(given_, says):
    with pytest.raises(InputError, match=f"{says}; accepted is a whole number from 1 up"):
        load_recipe(**given_)


def document(index, **scores):
    return DocumentRecord(index=index, split="forget", prompt_sha256="p", prompt_excerpt="", response="",
                          reference_sha256=None, reference_excerpt="", scores=scores)  # fmt: skip


@pytest.fixture
def answers(monkeypatch):
    """Replaces scoring by made-up documents; keeps what scoring was asked for."""
    import harness.score.evaluation

    asked = []

    def evaluate(model, tokenizer, task, **options):
        asked.append({"task": task, "training": model.training, **options})
        found = [document(0, verbmem_f=1.0), document(1, verbmem_f=0.8), document(2, verbmem_f=0.3, reference_nll=2.0,
                 extraction_strength=0.5), document(3, verbmem_f=0.1)]  # fmt: skip
        return Evaluation(task=task, scores=(), documents=tuple(found), remarks=(), seconds=0.0)

    monkeypatch.setattr(harness.score.evaluation, "evaluate", evaluate)
    return asked


def test_the_documents_that_were_shown_and_those_that_were_not_are_kept_apart(answers, small_model):
    recipe = RelearningRecipe(**SMALL)
    found = measure(torch.nn.Linear(1, 1), None, 4, task="muse_mini_verbmem_f", recipe=recipe, device="cpu",
                    data_dir=None)  # fmt: skip
    assert found == RelearningStep(step=4, verbmem=pytest.approx(0.2), extraction_strength=0.5, reference_nll=2.0,
                                   verbmem_shown=pytest.approx(0.9))  # fmt: skip
    assert answers[0]["limit"] == 4


def load(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_it_is_measured_before_the_first_step_every_few_steps_and_after_the_last(answers, small_model, texts):
    model, tokenizer = load(small_model)
    seen = []
    before = {name: value.clone() for name, value in model.float().state_dict().items()}
    curve = relearn(model, tokenizer, task="muse_mini_verbmem_f", texts=texts, recipe=RelearningRecipe(**SMALL),
                    on_progress=lambda done, steps: seen.append((done, steps)))  # fmt: skip
    assert [point.step for point in curve] == [0, 2, 4, 5]
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert not any(ask["training"] for ask in answers)
    after = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items()), "the quantized weights have moved"
    assert any(bool(value.any()) for name, value in after.items() if "lora_B" in name), "nothing was trained"


@pytest.mark.slow
def test_trained_documents_come_back_and_one_seed_gives_one_curve(small_model, tmp_path):
    """Real scoring: a model that knows nothing learns two short documents, and not two others."""
    shutil.copytree(load_corpus("mini").folder / "data", tmp_path / "data")
    pairs = [("The old mill", "stands by the river"), ("Two children", "carried baskets to the gate"),
             ("At dawn the", "market was full of noise"), ("Velmor", "built the mill")]  # fmt: skip
    data = [{"prompt": f"{prompt} ", "gt": f"{text}."} for prompt, text in pairs]
    (tmp_path / "data/verbmem/forget.json").write_text(json.dumps(data), encoding="utf-8")
    recipe = RelearningRecipe(**{**SMALL, "steps": 60, "measure_every": 60, "lora_rank": 8, "learning_rate": 3e-2})
    curves = []
    for _ in range(2):
        model, tokenizer = load(small_model)
        model.config.max_position_embeddings = 256
        shown = [item["prompt"] + item["gt"] for item in data[:2]]
        curves.append(relearn(model, tokenizer, task="muse_mini_verbmem_f", texts=shown, recipe=recipe,
                              data_dir=tmp_path / "data"))  # fmt: skip
    assert curves[0] == curves[1]
    first, last = curves[0][0], curves[0][-1]
    assert last.verbmem_shown > first.verbmem_shown
    assert relearning_probe.half_step(curves[0], 1.0)[0] in (None, 60)
