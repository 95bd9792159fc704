"""The smallest rank that survives: the bisection, what of it goes into a folder, and the command line's way there."""

import dataclasses
import json
import math
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from harness.cli.main import app
from harness.errors import InputError, QuenchError
from harness.quantize.survival.measure import chance_of_return
from harness.records import LayerSurvival
from harness.submit.manifest import load as manifest
from harness.submit.scan import folder as folder_scan
from harness.unlearn import rank_search
from harness.unlearn.execution import Execution
from harness.unlearn.from_target import ALPHA_PER_RANK, AUTO, asks_for_search, recipes_by_rank
from harness.unlearn.loss_curve import CURVE, LINES
from harness.unlearn.rank_search import LEAST_RATIO, LOG, RANKS, make_smallest, smallest
from harness.unlearn.recipes import load_recipe
from harness.unlearn.submission_folder import MANIFEST, WEIGHTS, read_manifest, write_submission

SHORT = ["window=16", "batch_size=2", "max_steps=1", "learning_rate=1e-2"]
NOTHING = {"lora": None, "full": False, "settings": (), "rank": None}


def asked_of(ranks, outcome):
    """Returns what the bisection finds, and every rank that it asked about in order."""
    asked = []

    def survives(rank):
        asked.append(rank)
        return outcome[rank]

    return smallest(ranks, survives), asked


@given(st.integers(0, 12), st.data())
def test_where_survival_rises_with_the_rank_the_smallest_that_survives_is_found_in_few_questions(count, data):
    ranks = [2**power for power in range(count)]
    first = data.draw(st.integers(0, count))
    found, asked = asked_of(ranks, {rank: place >= first for place, rank in enumerate(ranks)})
    assert found == (ranks[first] if first < count else None)
    assert len(asked) <= math.ceil(math.log2(count + 1))


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_whatever_survives_the_answer_was_measured_and_so_was_the_failure_just_below_it(outcomes):
    ranks = [2**power for power in range(len(outcomes))]
    found, asked = asked_of(ranks, dict(zip(ranks, outcomes, strict=True)))
    assert len(asked) == len(set(asked))
    if found is None:
        assert ranks[-1] in asked
        assert not outcomes[-1]
        return
    place = ranks.index(found)
    assert found in asked
    assert outcomes[place]
    if place:
        assert ranks[place - 1] in asked
        assert not outcomes[place - 1]


def test_seven_ranks_take_three_trainings():
    for first in range(len(RANKS) + 1):
        _, asked = asked_of(RANKS, {rank: place >= first for place, rank in enumerate(RANKS)})
        assert len(asked) == 3


def test_the_threshold_is_where_the_miniature_s_fit_says_that_one_in_25_comes_back():
    assert 0.03 < chance_of_return(LEAST_RATIO) < 0.05
    assert chance_of_return(0.51) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "options",
    [{"rank": "auto"}, {"lora": "r=auto"}, {"lora": "r=auto,dropout=0.1"}, {"settings": ["lora_rank=auto"]},
     {"rank": "auto", "lora": "r=auto"}, {"rank": "auto", "lora": "alpha=8"}],
)  # fmt: skip
def test_auto_may_stand_wherever_a_rank_may(options):
    assert asks_for_search(**(NOTHING | options))


@pytest.mark.parametrize("options", [{}, {"rank": "8"}, {"lora": "r=8"}, {"full": True}, {"settings": ["epochs=2"]}])
def test_a_rank_that_is_given_leaves_nothing_to_search(options):
    assert not asks_for_search(**(NOTHING | options))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rank": "auto", "full": True}, "--rank and --full exclude each other"),
        ({"rank": "auto", "lora": "r=8"}, "lora_rank is given as 8 and as auto: give it once."),
        ({"rank": "4", "settings": ["lora_rank=8"]}, "lora_rank is given as 8 and as 4: give it once."),
        ({"rank": " "}, "--rank: 'rank= ' is not of the form key=value."),
    ],
)
def test_ranks_that_contradict_each_other_are_one_sentence(options, says):
    with pytest.raises(InputError) as caught:
        asks_for_search(**(NOTHING | options))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "alphas"),
    [
        ("mini_npo_gdr_lora", {}, {1: 2.0, 8: 16.0}),
        ("ga_gdr", {}, {1: ALPHA_PER_RANK, 8: 8 * ALPHA_PER_RANK}),
        ("ga_gdr", {"lora": "r=auto,alpha=12"}, {1: 12.0, 8: 12.0}),
        ("paper_npo_gdr_lora_books", {"settings": ["lora_alpha=64"]}, {1: 64.0, 8: 64.0}),
    ],
)
def test_alpha_follows_the_rank_unless_it_is_given_and_nothing_else_differs(name, options, alphas):
    recipes, _ = recipes_by_rank(name, (1, 8), **(NOTHING | {"rank": AUTO} | options))
    assert {rank: recipe.lora_alpha for rank, recipe in recipes.items()} == alphas
    assert {rank: recipe.lora_rank for rank, recipe in recipes.items()} == {1: 1, 8: 8}
    plain = [dataclasses.replace(recipe, lora_rank=0, lora_alpha=1.0) for recipe in recipes.values()]
    assert plain[0] == plain[1] == load_recipe(name, lora_rank=0, lora_alpha=1.0)


def test_settings_of_the_machine_go_past_the_recipes():
    recipes, how = recipes_by_rank("ga", (1,), **(NOTHING | {"rank": AUTO, "settings": ["checkpoint_every=5"]}))
    assert how == Execution(checkpoint_every=5)
    assert recipes[1].lora_rank == 1


@pytest.fixture(scope="module")
def target(small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("controls") / "small-target"
    shutil.copytree(small_model, folder / WEIGHTS)
    return write_submission(folder, method="none", corpus="mini", kind="full_model", role="target")


@pytest.fixture
def search(target, tmp_path):
    """Runs a search whose measure is a made-up ratio by rank; ``trained`` lists the ranks that were trained."""
    texts = tmp_path / "texts"
    (texts / "raw").mkdir(parents=True)
    (texts / "raw/forget.json").write_text(json.dumps(["The old mill stands by the river. " * 3]), encoding="utf-8")
    trained = []

    def call(ratios, *, out="found", seed=0, measure=None):
        recipes, how = recipes_by_rank("ga", sorted(ratios), **(NOTHING | {"rank": AUTO, "settings": SHORT}))

        def made_up(made):
            ratio = ratios[made.hyperparameters["lora_rank"]]
            return LayerSurvival(layer="all layers", codes_changed=0.1, update_in_steps=0.2, relative_update=0.3,
                                 survival_ratio=ratio, cosine=0.5, num_weights=9)  # fmt: skip

        return make_smallest(
            recipes, quantizer="rtn-4bit-g64", measure=measure or made_up, target="small-target", seed=seed,
            submissions={"small-target": target}, out=tmp_path / out, cache=tmp_path / "cache", data_dir=texts,
            execution=how, on_progress=lambda rank, done, steps: trained.append(rank),
        )  # fmt: skip

    call.trained = trained
    return call


def test_the_folder_holds_the_smallest_that_survives_and_the_log_of_the_search(search, tmp_path):
    made, log = search({1: 0.2, 2: 0.6, 4: 0.8, 8: 0.9})
    assert log.rank == 4
    assert [(one.rank, one.survives) for one in log.tried] == [(4, True), (2, False)]
    assert search.trained == [4, 2]
    folder = tmp_path / "found"
    assert {path.name for path in folder.iterdir()} == {MANIFEST, WEIGHTS, CURVE, LINES, LOG}
    assert json.loads((folder / WEIGHTS / "adapter_config.json").read_text(encoding="utf-8"))["r"] == 4
    told = json.loads((folder / LOG).read_text(encoding="utf-8"))
    assert told == read_manifest(folder)["hyperparameters"]["rank_search"] == made.hyperparameters["rank_search"]
    assert (told["rank"], told["quantizer"], told["least_ratio"]) == (4, "rtn-4bit-g64", LEAST_RATIO)
    assert [one["survival_ratio"] for one in told["tried"]] == [0.8, 0.6]


def test_the_folder_passes_the_checks_of_any_submission(search, target, tmp_path):
    made, _ = search({1: 0.9})
    shutil.copytree(made.folder, tmp_path / "all" / made.name)
    shutil.copytree(target.folder, tmp_path / "all" / "small-target")
    found = manifest.load_all(tmp_path / "all")
    folder_scan.scan(found["found"], found)
    assert found["found"].hyperparameters["lora_rank"] == 1


def test_a_ratio_that_can_not_be_told_from_chance_is_no_survival(search):
    _, log = search({1: None, 2: LEAST_RATIO})
    assert [(one.rank, one.survives) for one in log.tried] == [(2, True), (1, False)]
    assert log.rank == 2


@pytest.mark.parametrize(
    ("ratio", "left"), [(0.31, "leaves 0.31"), (None, "leaves nothing that can be told from chance")]
)
def test_where_no_rank_survives_the_sentence_says_how_much_the_largest_leaves(search, tmp_path, ratio, left):
    with pytest.raises(QuenchError, match=f"No rank up to 2 survives rtn-4bit-g64: the largest {left}") as caught:
        search({1: 0.1, 2: ratio})
    assert not isinstance(caught.value, InputError)
    (log,) = (tmp_path / "found").glob(f".*/{LOG}")
    assert json.loads(log.read_text(encoding="utf-8"))["rank"] is None
    assert not (tmp_path / "found" / MANIFEST).exists()


def test_a_search_that_was_cut_off_goes_on_with_what_it_has_trained(search, tmp_path):
    def cut_off(made):
        if made.hyperparameters["lora_rank"] == 1:
            raise KeyboardInterrupt
        return LayerSurvival(layer="all layers", codes_changed=0.1, update_in_steps=0.2, relative_update=0.3,
                             survival_ratio=0.9, cosine=0.5, num_weights=9)  # fmt: skip

    ratios = {1: 0.3, 2: 0.8}
    with pytest.raises(KeyboardInterrupt):
        search(ratios, measure=cut_off)
    (half,) = (tmp_path / "found").glob(".ranks-*/r1/found")
    (half / MANIFEST).unlink()
    assert search.trained == [2, 1]
    search.trained.clear()
    made, log = search(ratios)
    assert search.trained == [1]
    assert log.rank == 2
    unbroken, _ = search(ratios, out="unbroken")
    assert made.weights_sha256 == unbroken.weights_sha256


def test_a_folder_that_holds_another_search_is_refused(search, tmp_path):
    with pytest.raises(QuenchError):
        search({1: 0.1})
    with pytest.raises(InputError, match="is not empty, or holds a search with other options: give a new folder"):
        search({1: 0.1}, seed=1)


def test_a_quantizer_that_hands_on_no_codes_can_not_be_searched_for(search):
    with pytest.raises(InputError, match="--at: rtn-4bit-g64 hands on no codes"):
        search({1: 0.9}, measure=lambda made: None)


def invoke(*arguments):
    return CliRunner().invoke(app, ["unlearn", "ga", "--target", "mini-target-plain", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--rank", "auto"), "--rank auto needs one quantizer that the update has to survive"),
        (("--rank", "auto", "--at", "rtn-4bit-g64,bnb-nf4"), "--rank auto needs one quantizer"),
        (("--rank", "auto", "--at", "reference"), "--at: reference rounds nothing"),
        (("--rank", "auto", "--at", "rtn-4bit"), "names no single quantizer"),
        (("--rank", "8", "--at", "rtn-4bit-g64"), "--at goes with --rank auto"),
        (("--at", "rtn-4bit-g64"), "--at goes with --rank auto"),
        (("--rank", "auto", "--at", "rtn-4bit-g64", "--full"), "exclude each other"),
        (("--rank", "big"), "lora_rank is 'big', which is not a whole number"),
    ],
)
def test_what_the_command_can_not_do_is_one_sentence_and_nothing_is_trained(tmp_path, arguments, says):
    done = invoke("--out", tmp_path / "mine", *arguments)
    assert done.exit_code == 2
    assert says in done.stderr
    assert "Traceback" not in done.output + done.stderr
    assert not (tmp_path / "mine").exists()


@pytest.mark.slow
def test_the_command_finds_a_rank_scores_it_once_and_prints_both(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_search, "RANKS", (1, 2))
    done = invoke("--rank", "auto", "--at", "rtn-8bit-g128", "--set", "max_steps=2", "--set", "window=256",
                  "--set", "learning_rate=1e-3", "--out", tmp_path / "mine", "--store",
                  tmp_path / "s.duckdb")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    log = json.loads((tmp_path / "mine" / LOG).read_text(encoding="utf-8"))
    # A title wraps where its table is narrower.
    said = f"Rank {log['rank']} is the smallest whose update survives rtn-8bit-g128"
    assert said in " ".join(done.stdout.split())
    assert all(word in done.stdout for word in ("reference", "muse_mini_verbmem_f", "muse_mini_knowmem_r", "finished"))
    assert log["rank"] in (1, 2)
