"""The plan: which cells there are, which are done, and what a cell's key depends on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from jobs_without_models import make_submission

from harness.errors import CorpusError, InputError, UnknownNameError
from harness.quantize import resolve
from harness.records import CellResult, Submission
from harness.run.plan import planner
from harness.score.corpora import catalogue
from harness.submit.manifest import load as manifest

ROOT = Path(__file__).parents[3]

REFERENCE, RTN = resolve("reference"), resolve("rtn-4bit-g64")


@pytest.fixture
def submissions(tmp_path: Path) -> dict[str, Submission]:
    """A target, a retrain control, an entry and an adapter entry, with weights of a few bytes."""

    def make(name: str, content: bytes, **changes: object) -> Submission:
        weights = tmp_path / name / "weights"
        weights.mkdir(parents=True)
        (weights / "model.safetensors").write_bytes(content)
        (weights / "tokenizer.json").write_text("{}")
        return make_submission(name, folder=str(tmp_path / name), **changes)

    made = [
        make("the-target", b"target", role="target"),
        make("the-retrain", b"retrain", role="retrain"),
        make("full-entry", b"full", target="the-target", retrain="the-retrain"),
        make("lora-entry", b"lora", target="the-target", retrain="the-retrain", kind="lora_adapter",
             base_model="the-target"),
    ]  # fmt: skip
    return {submission.name: submission for submission in made}


def keys(plan: planner.Plan) -> set[str]:
    return {cell.key for job in plan.jobs for cell in job.cells}


def test_the_grid_is_submissions_times_quantizers_times_tasks(submissions: dict[str, Submission]) -> None:
    plan = planner.plan(submissions, quantizers=[REFERENCE, RTN])
    assert len(plan.jobs) == 4 * 2
    assert plan.cells_to_do == 4 * 2 * 4
    assert len(keys(plan)) == 32


def test_the_keys_of_the_committed_store_are_those_that_a_plan_gives_today(committed_cells: list[CellResult]) -> None:
    """Of the backends whose version is Quench's own: another library's version is another key."""
    stored = [cell for cell in committed_cells if cell.corpus == "mini" and cell.spec.backend in ("reference", "rtn")]
    quantizers = [resolve(name) for name in sorted({cell.spec.name for cell in stored})]
    plan = planner.plan(manifest.load_all(ROOT / "submissions"), quantizers=quantizers, corpus="mini")
    assert len(quantizers) == 6
    assert keys(plan) == {cell.cell.key for cell in stored}


def test_controls_come_first_and_one_submission_s_quantizers_follow_each_other(
    submissions: dict[str, Submission],
) -> None:
    plan = planner.plan(submissions, quantizers=[REFERENCE, RTN], corpus="mini")
    order = [job.submission.name for job in plan.jobs]
    assert order[:4] == ["the-target", "the-target", "the-retrain", "the-retrain"]
    assert order[4:] == ["full-entry", "full-entry", "lora-entry", "lora-entry"]


def test_asking_for_one_entry_adds_the_controls_it_is_compared_with(submissions: dict[str, Submission]) -> None:
    plan = planner.plan(submissions, names=["full-entry"], quantizers=[RTN])
    assert plan.added_controls == ("the-retrain", "the-target")
    assert {job.submission.name for job in plan.jobs} == {"the-target", "the-retrain", "full-entry"}


def test_without_controls_only_what_was_asked_for_is_planned(submissions: dict[str, Submission]) -> None:
    plan = planner.plan(submissions, names=["full-entry"], quantizers=[RTN], controls=False)
    assert [job.submission.name for job in plan.jobs] == ["full-entry"]
    assert plan.added_controls == ()


def test_finished_cells_are_done_and_not_planned_again(submissions: dict[str, Submission]) -> None:
    whole = planner.plan(submissions, quantizers=[RTN])
    some = sorted(keys(whole))[:5]
    rest = planner.plan(submissions, quantizers=[RTN], finished=some)
    assert {cell.key for cell in rest.done} == set(some)
    assert keys(rest) == keys(whole) - set(some)


def test_a_plan_with_everything_finished_has_no_jobs(submissions: dict[str, Submission]) -> None:
    whole = planner.plan(submissions, quantizers=[RTN])
    assert planner.plan(submissions, quantizers=[RTN], finished=keys(whole)).jobs == ()


def test_chosen_tasks_leave_the_others_out(submissions: dict[str, Submission]) -> None:
    plan = planner.plan(submissions, quantizers=[RTN], tasks=["muse_mini_verbmem_f"])
    assert {cell.task for job in plan.jobs for cell in job.cells} == {"muse_mini_verbmem_f"}


def test_tasks_of_another_corpus_leave_nothing_to_run_and_say_so(submissions: dict[str, Submission]) -> None:
    with pytest.raises(InputError, match="None of the tasks"):
        planner.plan(submissions, quantizers=[RTN], tasks=["muse_books_verbmem_f"])


def test_a_backend_that_can_t_run_here_makes_its_jobs_impossible_with_its_reason(
    submissions: dict[str, Submission], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def unavailable_reason(self, spec: object, device: str) -> str:
            return f"no {device} kernel"

        def library_version(self) -> str:
            return "0"

    monkeypatch.setattr(planner, "backend_of", lambda spec: Broken())
    plan = planner.plan(submissions, quantizers=[RTN], device="cpu")
    assert plan.jobs == ()
    assert {reason for _, reason in plan.impossible} == {"no cpu kernel"}
    assert len(plan.impossible) == 4


def test_an_unknown_submission_is_answered_with_the_nearest_name(submissions: dict[str, Submission]) -> None:
    with pytest.raises(UnknownNameError, match="did you mean full-entry"):
        planner.plan(submissions, names=["ful-entry"], quantizers=[RTN])


def test_an_unknown_corpus_is_refused(submissions: dict[str, Submission]) -> None:
    with pytest.raises(UnknownNameError, match="mini"):
        planner.plan(submissions, quantizers=[RTN], corpus="minni")


def test_a_corpus_without_submissions_is_refused_with_what_to_do(submissions: dict[str, Submission]) -> None:
    with pytest.raises(InputError, match=r"no submission for corpus 'books'"):
        planner.plan(submissions, quantizers=[RTN], corpus="books")


def test_a_missing_data_folder_is_refused_before_anything_runs(
    submissions: dict[str, Submission], tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match="no-such-folder"):
        planner.plan(submissions, quantizers=[RTN], data_dir=tmp_path / "no-such-folder")


def test_a_missing_reference_value_is_refused_before_anything_runs(
    submissions: dict[str, Submission], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(task: str, *, data_dir: object) -> None:
        if catalogue.metric_of(task) == "privleak":
            raise CorpusError("no reference AUC")

    monkeypatch.setattr(planner.catalogue, "check_task", refuse)
    with pytest.raises(CorpusError, match="no reference AUC"):
        planner.plan(submissions, quantizers=[RTN])
    assert planner.plan(submissions, quantizers=[RTN], tasks=["muse_mini_verbmem_f"]).jobs


Change = Callable[[dict[str, Submission]], None]


def own_weights(submissions: dict[str, Submission]) -> None:
    Path(submissions["lora-entry"].weights, "model.safetensors").write_bytes(b"other")


def base_weights(submissions: dict[str, Submission]) -> None:
    Path(submissions["the-target"].weights, "model.safetensors").write_bytes(b"other")


def tokenizer(submissions: dict[str, Submission]) -> None:
    Path(submissions["the-target"].weights, "tokenizer.json").write_text('{"changed": 1}')


def kind(submissions: dict[str, Submission]) -> None:
    submissions["lora-entry"] = replace(submissions["lora-entry"], kind="full_model")


@pytest.mark.parametrize("change", [own_weights, base_weights, tokenizer, kind], ids=lambda change: change.__name__)
def test_a_key_changes_with_everything_that_is_loaded(submissions: dict[str, Submission], change: Change) -> None:
    before = keys(planner.plan(submissions, names=["lora-entry"], quantizers=[RTN], controls=False))
    change(submissions)
    after = keys(planner.plan(submissions, names=["lora-entry"], quantizers=[RTN], controls=False))
    assert not before & after


@pytest.mark.parametrize("option", [{"seed": 1}, {"limit": 4}], ids=["seed", "limit"])
def test_a_key_changes_with_seed_and_limit(submissions: dict[str, Submission], option: dict[str, int]) -> None:
    assert not keys(planner.plan(submissions, quantizers=[RTN])) & keys(
        planner.plan(submissions, quantizers=[RTN], **option)  # type: ignore[arg-type]
    )


def test_a_key_changes_with_the_scoring_version_and_the_library_s_version(
    submissions: dict[str, Submission], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(planner.plan(submissions, quantizers=[RTN]))
    monkeypatch.setattr(planner, "SCORING_VERSION", planner.SCORING_VERSION + 1)
    scoring = keys(planner.plan(submissions, quantizers=[RTN]))
    assert not before & scoring
    monkeypatch.setattr(type(planner.backend_of(RTN)), "library_version", lambda self: "another")
    assert not scoring & keys(planner.plan(submissions, quantizers=[RTN]))


def test_only_privleak_s_key_depends_on_the_reference_value(
    submissions: dict[str, Submission], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(planner.plan(submissions, quantizers=[RTN]))
    load = catalogue.load_corpus
    monkeypatch.setattr(
        planner.catalogue, "load_corpus", lambda name, **rest: replace(load(name, **rest), reference_auc=0.123)
    )
    plan = planner.plan(submissions, quantizers=[RTN])
    changed = {cell.task for job in plan.jobs for cell in job.cells if cell.key not in before}
    assert changed == {"muse_mini_privleak"}


def test_a_key_does_not_depend_on_titles_notes_or_the_folder_s_place(
    submissions: dict[str, Submission], tmp_path: Path
) -> None:
    before = keys(planner.plan(submissions, quantizers=[RTN]))
    for name, submission in list(submissions.items()):
        moved = tmp_path / "moved" / name
        moved.parent.mkdir(exist_ok=True)
        Path(submission.folder).rename(moved)
        submissions[name] = replace(submission, title="Another title", notes="new", folder=str(moved),
                                    weights=str(moved / "weights"))  # fmt: skip
    assert keys(planner.plan(submissions, quantizers=[RTN])) == before
