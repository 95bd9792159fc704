import dataclasses

import pytest

from harness.errors import InputError, UnknownNameError
from harness.unlearn import recipes
from harness.unlearn.recipes import load_recipe, recipe_names

GENERAL = ("ga", "ga_gdr", "ga_klr", "npo", "npo_gdr", "npo_klr")


def test_the_six_general_recipes_and_those_of_the_demo_are_there():
    assert set(GENERAL) < set(recipe_names())
    assert sum(name.startswith("mini_") for name in recipe_names()) == 12


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_is_frozen(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", GENERAL)
def test_a_general_recipe_is_named_after_its_losses(name):
    recipe = load_recipe(name)
    assert recipe.method == name.replace("_", "+").upper()
    assert recipe.parameters == "full"


def test_overrides_replace_settings_and_nothing_else():
    recipe = load_recipe("ga_gdr", epochs=3, lora_rank=4)
    plain = load_recipe("ga_gdr")
    assert (recipe.epochs, recipe.lora_rank, recipe.parameters) == (3, 4, "LoRA")
    assert dataclasses.replace(recipe, epochs=plain.epochs, lora_rank=plain.lora_rank) == plain


def test_numbers_that_yaml_reads_as_text_are_numbers():
    assert load_recipe("ga", learning_rate="1e-4").learning_rate == 1e-4
    assert load_recipe("ga", epochs="3").epochs == 3
    assert isinstance(load_recipe("ga", learning_rate=1).learning_rate, float)


def test_an_unknown_recipe_is_answered_with_the_nearest_name():
    with pytest.raises(UnknownNameError, match="ga_gdr"):
        load_recipe("ga_grd")


def test_an_unknown_setting_is_answered_with_all_that_are_accepted():
    with pytest.raises(InputError) as caught:
        load_recipe("ga", learning_rat=1e-4)
    assert "learning_rat" in str(caught.value)
    for field in dataclasses.fields(recipes.Recipe):
        assert (field.name in str(caught.value)) or field.name == "name"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 1.5),
        ("epochs", True),
        ("epochs", "many"),
        ("epochs", 0),
        ("epochs", None),
        ("learning_rate", -1e-3),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", [1]),
        ("npo_beta", 0),
        ("forget_loss", "GA"),
        ("retain_loss", None),
        ("update_precision", "float16"),
        ("window", 1),
        ("lora_dropout", 1.0),
        ("max_steps", -1),
        ("name", "mine"),
    ],
)
def test_a_value_that_makes_no_sense_is_an_input_error_that_names_its_key(key, value):
    overrides = {key: value}
    with pytest.raises(InputError, match=key):
        load_recipe("npo", **overrides)


def test_the_digest_follows_the_settings_and_not_the_name():
    recipe = load_recipe("ga_gdr")
    assert dataclasses.replace(recipe, name="other").digest == recipe.digest
    assert load_recipe("ga_gdr", epochs=9).digest != recipe.digest


def test_a_manifest_s_settings_leave_out_what_had_no_part_in_it():
    assert not {"npo_beta", "retain_weight", "lora_rank", "max_steps", "name"} & set(load_recipe("ga").settings())
    assert {"npo_beta", "retain_weight"} <= set(load_recipe("npo_gdr").settings())
    assert {"lora_rank", "lora_alpha", "lora_dropout"} <= set(load_recipe("mini_ga_gdr_lora").settings())
    assert load_recipe("ga", max_steps=10).settings()["max_steps"] == 10


def test_the_demo_recipes_say_what_the_specification_says():
    table = {
        "mini_ga_gdr_full_lr1e-4": ("GA+GDR", 0, 2.0, 1e-4, 8),
        "mini_ga_gdr_full_lr2e-4": ("GA+GDR", 0, 2.0, 2e-4, 5),
        # Not 3.0 and 7 epochs: utility at NF4 would miss the gate by 0.1 points (docs/muse_mini.md).
        "mini_ga_gdr_lora": ("GA+GDR", 8, 4.0, 1e-3, 8),
        "mini_npo_gdr_full": ("NPO+GDR", 0, 1.0, 1e-4, 5),
        "mini_npo_gdr_lora": ("NPO+GDR", 8, 1.0, 1e-3, 5),
        "mini_ga_gdr_full_weak_retain": ("GA+GDR", 0, 1.0, 2e-4, 5),
        "mini_ga_lora_collapsed": ("GA", 8, 1.0, 1e-3, 3),
        "mini_noop_lora": ("GA+GDR", 8, 1.0, 1e-5, 1),
    }
    for name, wanted in table.items():
        found = load_recipe(name)
        assert (found.method, found.lora_rank, found.retain_weight, found.learning_rate, found.epochs) == wanted
        assert (found.window, found.batch_size, found.lora_alpha, found.update_precision) == (256, 4, 16.0, "float32")


def test_the_paper_s_recipes_say_what_its_setup_says():
    epochs = {"ga_gdr": 10, "ga_klr": 5, "npo_gdr": 10, "npo_klr": 10}
    adapters = {
        "books": {"ga_gdr": (16, 16), "ga_klr": (16, 16), "npo_gdr": (64, 128), "npo_klr": (16, 32)},
        "news": {"ga_gdr": (64, 64), "ga_klr": (64, 64), "npo_gdr": (16, 16), "npo_klr": (64, 128)},
    }
    for method, passes in epochs.items():
        weight = 100.0 if method.startswith("ga") else 0.1
        full = load_recipe(f"paper_{method}_full")
        assert (full.learning_rate, full.batch_size, full.epochs, full.lora_rank) == (1e-5, 16, passes, 0)
        for corpus, ranks in adapters.items():
            lora = load_recipe(f"paper_{method}_lora_{corpus}")
            assert (lora.lora_rank, lora.lora_alpha, lora.lora_dropout, lora.epochs) == (*ranks[method], 0.05, 5)
            assert 1e-4 <= lora.learning_rate <= 7e-4
            for recipe in (full, lora):
                assert recipe.method == method.replace("_", "+").upper()
                assert (recipe.retain_weight, recipe.window) == (weight, 2048)
                assert "2602.13151" in recipe.source
                assert recipe.settings()["source"] == recipe.source


def test_where_a_recipe_comes_from_moves_no_weight_and_so_not_its_digest():
    assert load_recipe("ga_gdr", source="elsewhere").digest == load_recipe("ga_gdr").digest
    assert "source" not in load_recipe("ga_gdr").settings()
    with pytest.raises(InputError, match="source is 3, which is no text"):
        load_recipe("ga_gdr", source=3)


def test_the_digests_of_the_demo_s_recipes_stay_those_of_the_committed_manifests():
    """`quench mini build` keeps a folder by this digest: a new field of Recipe must not make it train again."""
    assert load_recipe("mini_npo_gdr_full").digest.startswith("ee80271731a00f2f")
