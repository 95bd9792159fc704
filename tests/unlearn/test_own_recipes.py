"""Recipes of one's own: one YAML, given by its path."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import InputError, UnknownNameError
from harness.unlearn import from_target, recipes

SHOWN = Path(__file__).parent.parent.parent / "docs" / "extending" / "my_recipe.yaml"


def test_the_recipe_of_the_page_is_one() -> None:
    recipe = recipes.load_recipe(str(SHOWN), epochs=3)
    assert (recipe.name, recipe.method, recipe.learning_rate, recipe.epochs) == ("my_recipe", "NPO+GDR", 1e-4, 3)
    assert recipe.source == "Quench's documentation"


def test_the_command_s_options_apply_to_it_as_to_any_other() -> None:
    recipe, _ = from_target.recipe_from_options(str(SHOWN), lora="r=4,alpha=8", full=False, settings=["epochs=1"])
    assert (recipe.lora_rank, recipe.epochs) == (4, 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [", "can't be read"),
        (b"\xff\xfe", "can't be read"),
        (b"- npo", "must be a mapping with forget_loss"),
        (b"epochs: 3", "must be a mapping with forget_loss"),
        (b"forget_loss: npo\nspeed: 3", "there is no setting 'speed'"),
        (b"forget_loss: dpo", "forget_loss is 'dpo'; accepted are ga, npo"),
        (b"forget_loss: !!python/object/apply:os.system ['id']", "can't be read"),
    ],
)
def test_a_faulty_recipe_is_refused_in_one_sentence(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        recipes.load_recipe(str(path))


def test_a_path_that_is_not_there_is_said_and_names_stay_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The recipe .*none\.yaml can't be read"):
        recipes.load_recipe(str(tmp_path / "none.yaml"))
    for name in ("npoo", "../recipes/npo", ""):
        with pytest.raises(UnknownNameError):
            recipes.load_recipe(name)
    assert recipes.load_recipe("npo").name == "npo"
