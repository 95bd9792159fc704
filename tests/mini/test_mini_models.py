"""The build, with trainings cut to two steps: everything but the numbers is the real thing."""

import hashlib
import json
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from harness.mini import demo_set, models, pretraining
from harness.quantize.backends.rtn import round_to_grid
from harness.submit.manifest import load as manifest
from harness.submit.scan import folder as folder_scan
from harness.unlearn.recipes import load_recipe, recipe_names

CONTROLS = {demo_set.PLAIN_TARGET, demo_set.BORN_TARGET, demo_set.RETRAIN}
ALL_DEMOS = demo_set.DEMOS
SOME_DEMOS = tuple(
    demo for demo in ALL_DEMOS if demo.slug in ("mini-npo-gdr-lora", "mini-noop-lora", "mini-plain-ga-gdr-full")
)
"""One adapter with a reference, one without, one full model from the other target: what differs in making them."""
SLUGS = CONTROLS | {demo.slug for demo in SOME_DEMOS}
built_steps: list[tuple[str, int, int]] = []


@pytest.fixture(scope="module")
def short_trainings():
    whole = pretraining.training_batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pretraining, "training_batches", lambda world, tok, splits, _: whole(world, tok, splits[-1:], 1)[:2]
        )
        patch.setattr(demo_set, "DEMOS", SOME_DEMOS)
        patch.setattr(models, "load_recipe", partial(load_recipe, max_steps=2))
        yield


@pytest.fixture(scope="module")
def built(short_trainings, tmp_path_factory) -> models.BuildReport:
    return models.build(tmp_path_factory.mktemp("mini"), on_progress=lambda *step: built_steps.append(step))


def weights(out: Path, slug: str) -> dict[str, torch.Tensor]:
    return load_file(next((out / "submissions" / slug / "weights").glob("*.safetensors")))


def file_digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_build_makes_the_controls_and_the_demo_submissions(built):
    assert set(built.trained) == SLUGS
    assert {path.name for path in (built.out / "submissions").iterdir()} == SLUGS
    assert all(seconds > 0 for seconds in built.seconds.values())


def test_what_was_built_passes_the_checks_of_a_stranger_s_submission(built):
    submissions = manifest.load_all(built.out / "submissions")
    assert set(submissions) == SLUGS
    for submission in submissions.values():
        folder_scan.scan(submission, submissions)


def test_entries_name_their_target_and_adapters_sit_on_it(built):
    submissions = manifest.load_all(built.out / "submissions")
    for demo in SOME_DEMOS:
        entry = submissions[demo.slug]
        assert (entry.role, entry.target, entry.retrain) == ("entry", demo.target, demo_set.RETRAIN)
        assert entry.base_model == (demo.target if entry.kind == "lora_adapter" else None)
        assert "lora" in demo.slug or entry.kind == "full_model"
    roles = {name: submissions[name].role for name in CONTROLS}
    assert roles == {demo_set.PLAIN_TARGET: "target", demo_set.BORN_TARGET: "target", demo_set.RETRAIN: "retrain"}


def test_the_born_target_is_on_the_4_bit_grid_and_differs_from_the_plain_one_inside_the_blocks_only(built):
    plain, born = (weights(built.out, name) for name in (demo_set.PLAIN_TARGET, demo_set.BORN_TARGET))
    assert plain.keys() == born.keys()
    for name, tensor in born.items():
        if "proj" not in name:
            assert torch.equal(tensor, plain[name])
            continue
        assert not torch.equal(tensor, plain[name])
        groups = tensor.float().view(tensor.shape[0], -1, 128)
        assert max(len(group.unique()) for group in groups.reshape(-1, 128)) <= 16
        grid = round_to_grid(tensor.float(), bits=4, group_size=128, symmetric=False)
        assert torch.equal(tensor, grid.dequantize().to(torch.bfloat16))
        near = round_to_grid(plain[name].float(), bits=4, group_size=128, symmetric=False)
        assert (near.codes == grid.codes).float().mean() > 0.97


def test_weights_are_stored_in_bfloat16(built):
    for name in CONTROLS:
        assert {tensor.dtype for tensor in weights(built.out, name).values()} == {torch.bfloat16}


def test_the_corpus_facts_get_the_reference_and_the_digest_of_the_data(built):
    from harness.score.corpora.catalogue import load_corpus

    facts = json.loads((built.out / "tasks/muse_mini/corpus.json").read_text())
    assert facts["reference_auc"] == built.reference_auc
    assert 0 < facts["reference_auc"] < 1
    assert demo_set.RETRAIN in facts["reference_source"]
    assert facts["data_sha256"] == load_corpus("mini", data_dir=built.out / "tasks/muse_mini/data").data_sha256
    assert facts["name"] == "mini"


def test_no_file_names_a_path_of_this_machine(built):
    for path in built.out.rglob("*"):
        if path.is_file():
            assert str(built.out).encode() not in path.read_bytes(), path


def test_a_second_build_keeps_everything_and_changes_no_byte(built, short_trainings):
    before = file_digests(built.out)
    again = models.build(built.out)
    assert (again.trained, set(again.kept)) == ((), SLUGS)
    assert again.reference_auc == built.reference_auc
    assert file_digests(built.out) == before


@pytest.mark.slow
def test_damaged_unfinished_and_outdated_folders_are_built_again_to_the_same_bytes(built, short_trainings):
    before = file_digests(built.out)
    damaged = built.out / "submissions/mini-noop-lora/weights/adapter_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x7f")
    (built.out / "submissions/mini-npo-gdr-lora/submission.yaml").unlink()
    outdated = built.out / "submissions/mini-plain-ga-gdr-full/submission.yaml"
    values = yaml.safe_load(outdated.read_text())
    values["hyperparameters"]["build_sha256"] = "0" * 64
    outdated.write_text(yaml.safe_dump(values))
    again = models.build(built.out)
    assert set(again.trained) == {"mini-noop-lora", "mini-npo-gdr-lora", "mini-plain-ga-gdr-full"}
    assert file_digests(built.out) == before


def test_the_corpus_alone_needs_no_training(tmp_path):
    report = models.build(tmp_path, data_only=True)
    assert report.trained == ()
    assert report.reference_auc is None
    assert {path.name for path in tmp_path.iterdir()} == {"tasks"}
    assert len(list((tmp_path / "tasks/muse_mini/data").rglob("*.json"))) == 12


def test_training_has_one_thread_and_gives_the_others_back():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with models.one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_progress_names_what_is_trained(built):
    assert built_steps[:2] == [(demo_set.PLAIN_TARGET, 1, 2), (demo_set.PLAIN_TARGET, 2, 2)]
    assert {name for name, _, _ in built_steps} == SLUGS - {demo_set.BORN_TARGET}


def test_the_demo_set_is_that_of_the_specification():
    assert len(ALL_DEMOS) == 9
    # `quench reproduce` has four recipes of its own for the miniature, those with KLR.
    own = {f"mini_{loss}_klr_{kind}" for loss in ("ga", "npo") for kind in ("full", "lora")}
    assert {demo.recipe for demo in ALL_DEMOS} == {n for n in recipe_names() if n.startswith("mini_")} - own
    assert own < set(recipe_names())
    assert [demo.slug for demo in ALL_DEMOS if demo.target == demo_set.PLAIN_TARGET] == ["mini-plain-ga-gdr-full"]
    for demo in ALL_DEMOS:
        if "full" in demo.slug and demo.target == demo_set.BORN_TARGET:
            assert "by construction" in demo.notes
