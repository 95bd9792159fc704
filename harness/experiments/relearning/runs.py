"""Relearning probes of a submission and its retrained control under several quantizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from harness.errors import InputError, UnknownNameError
from harness.experiments.relearning.probe import RelearningRecipe, half_step, measure, relearn
from harness.provenance import sha256_json
from harness.quantize import backend_of, model_cache
from harness.records import QuantizerSpec, Submission
from harness.run.plan import calibration_texts, planner
from harness.score.corpora import catalogue
from harness.store.relearning import Relearning
from harness.store.store import Store
from harness.submit.checkpoint import prepare
from harness.submit.scan import folder as folder_scan

Progress = Callable[[str, str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """What all probes of one call share."""

    submissions: Mapping[str, Submission]
    target: Submission
    corpus: catalogue.Corpus
    task: str
    texts: tuple[str, ...]
    recipe: RelearningRecipe
    cache: Path
    data_dir: Path | None
    device: str


def relearn_all(
    name: str, specs: Sequence[QuantizerSpec], submissions: Mapping[str, Submission], *, recipe: RelearningRecipe,
    store: Path, cache: Path, data_dir: Path | None = None, device: str = "cpu",
    on_progress: Progress = lambda name, quantizer, done, steps: None,
) -> list[Relearning]:  # fmt: skip
    """Returns the probes of a submission and of its retrain control, and stores those that are new.

    Args:
        name: The submission: an entry.
        specs: Quantizers.
        submissions: All by name.
        recipe: How to train and ask.
        store: DuckDB file, created when absent; a probe of the same key is taken from it.
        cache: Folder for merged and quantized models.
        data_dir: Folder of the corpus in MUSE's local form.
        device: ``cpu`` or ``cuda``.
        on_progress: Called with (submission, quantizer, done, all) after each step.

    Raises:
        InputError: The submission is unknown or can't be probed, the corpus has
            too few documents, or a quantizer can't run here.
        QuantizationError: A backend fails.
    """
    bench = _bench(name, submissions, recipe, cache, data_dir, device)
    for spec in specs:
        if reason := backend_of(spec).unavailable_reason(spec, device):
            raise InputError(reason)
    entry = submissions[name]
    control = submissions.get(entry.retrain or "")
    subjects = [entry, *([control] if control is not None else [])]
    for one in (*subjects, bench.target):
        folder_scan.scan(one, submissions)
    with Store.open(store) as opened:
        known = {probe.key: probe for probe in opened.relearnings()}
    found = []
    for asked in specs:
        spec, texts = calibration_texts.prepare(asked, bench.corpus)
        keys = {one.name: _key(bench, one, spec) for one in subjects}
        if any(key not in known for key in keys.values()):
            model, tokenizer = _quantized(bench, bench.target, spec, texts)
            goal = measure(
                model.float(), tokenizer, 0, task=bench.task, recipe=recipe, device=device, data_dir=data_dir
            ).verbmem  # fmt: skip
            del model
        for one in subjects:
            probe = known.get(keys[one.name])
            if probe is None:
                probe = _probe(bench, one, spec, texts, keys[one.name], goal, on_progress)
                with Store.open(store) as opened:
                    opened.add_relearning(probe)
            found.append(probe)
    return found


def _bench(
    name: str, submissions: Mapping[str, Submission], recipe: RelearningRecipe, cache: Path, data_dir: Path | None,
    device: str,
) -> _Bench:  # fmt: skip
    if name not in submissions:
        raise UnknownNameError("submission", name, submissions)
    entry = submissions[name]
    target = submissions.get(entry.target or "")
    if entry.role != "entry" or target is None:
        raise InputError(f"{name} was unlearned from no target here: name an entry, whose retrain control comes along.")
    for one in (entry, target):
        if one.kind == "quantized_checkpoint":
            raise InputError(
                f"{one.name} is quantized already: the probe quantizes entry and target alike, from 16 bit."
            )
    corpus = catalogue.load_corpus(entry.corpus, data_dir=data_dir)
    task = next((task for task in corpus.tasks if catalogue.metric_of(task) == "verbmem_f"), None)
    documents = catalogue.load_split(corpus, "verbmem", "forget") if task is not None else ()
    if task is None or len(documents) < 2 * recipe.documents:
        raise InputError(
            f"Corpus {corpus.name} has {len(documents)} documents of VerbMem, and the probe trains on "
            f"{recipe.documents} and asks about as many others: give at most --documents {len(documents) // 2}."
        )
    texts = tuple(item["prompt"] + item["gt"] for item in documents[: recipe.documents])
    return _Bench(
        submissions=submissions, target=target, corpus=corpus, task=task, texts=texts,
        recipe=recipe, cache=cache, data_dir=data_dir, device=device,
    )  # fmt: skip


def _key(bench: _Bench, one: Submission, spec: QuantizerSpec) -> str:
    """Returns the digest of what the probe's figures depend on: its VerbMem cell, its target's, and the recipe."""
    cells = [
        planner.make_cell(
            each, spec, bench.task, weights=planner.weights_of(each, bench.submissions), corpus=bench.corpus,
            seed=bench.recipe.seed, limit=2 * bench.recipe.documents,
        ).key
        for each in (one, bench.target)
    ]  # fmt: skip
    return sha256_json([*cells, bench.recipe.digest])


def _quantized(bench: _Bench, one: Submission, spec: QuantizerSpec, texts: Sequence[str]) -> tuple[Any, Any]:
    checkpoint = prepare.prepare(one, bench.submissions, cache=bench.cache)
    made = model_cache.quantize_once(
        checkpoint, spec, device=bench.device, calibration=texts, cache=bench.cache, limit=model_cache.DEFAULT_LIMIT
    )
    return made.model, prepare.load_tokenizer(checkpoint)


def _probe(
    bench: _Bench, one: Submission, spec: QuantizerSpec, texts: Sequence[str], key: str, goal: float,
    on_progress: Progress,
) -> Relearning:  # fmt: skip
    model, tokenizer = _quantized(bench, one, spec, texts)
    start = perf_counter()
    curve = relearn(
        model, tokenizer, task=bench.task, texts=bench.texts, recipe=bench.recipe, device=bench.device,
        data_dir=bench.data_dir, on_progress=lambda done, steps: on_progress(one.name, spec.name, done, steps),
    )  # fmt: skip
    step, reason = half_step(curve, goal)
    return Relearning(
        key=key,
        submission=one.name,
        weights_sha256=prepare.content_digest(one, cache=bench.cache) or prepare.weights_digest(one),
        target=bench.target.name,
        corpus=bench.corpus.name,
        quantizer=spec.name,
        recipe_sha256=bench.recipe.digest,
        documents=bench.recipe.documents,
        goal=goal,
        half_step=step,
        reason=reason,
        curve=curve,
        device=bench.device,
        seconds=perf_counter() - start,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
