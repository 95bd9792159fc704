"""An entry's scores in the formats of other leaderboards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import yaml

from harness.publish.board import MetricResult, QuantizerResult
from harness.publish.formatting import prose
from harness.publish.release import Entry, Release
from harness.publish.statistics import quantities
from harness.publish.statistics.quantities import Estimate
from harness.publish.thresholds import CONFIDENCE, PRIVACY, RESAMPLES
from harness.records import CellResult
from harness.score.corpora.catalogue import Corpus
from harness.score.metrics.formulas import METRICS

EVERY_EVAL_EVER = "0.3.0"
"""Version of its schema that ``every_eval_ever`` writes."""

_HUB = "hf://"


def every_eval_ever(entry: Entry, release: Release) -> dict[str, Any]:
    """Returns an entry's primary scores under every quantizer as one record of Every Eval Ever.

    Differs from the reference: ``retrieved_timestamp`` is the time of the
    entry's newest cell, so that the same store gives the same record. What
    the form has no field for (quantizer, change, remaining share) stands in
    ``additional_details`` and ``details``.

    Source: eval.schema.json of evaleval/every_eval_ever.
    """
    submission = entry.row.submission
    hub = submission.weights.removeprefix(_HUB) if submission.weights.startswith(_HUB) else None
    name = prose(hub or f"quench/{submission.name}")
    epoch = _epoch(entry.changed)
    measured = [place for place in _measured(entry) if place[0].metric != PRIVACY or quantities.reference_auc(place[2])]
    version = measured[0][2].provenance.versions.get("quench-bench") if measured else None
    return {
        "schema_version": EVERY_EVAL_EVER,
        "evaluation_id": f"quench-{prose(entry.board.corpus)}/{name}/{epoch}",
        "evaluation_timestamp": epoch,
        "retrieved_timestamp": epoch,
        "source_metadata": {
            "source_name": prose(release.title),
            "source_type": "evaluation_run",
            "source_organization_name": prose(release.title),
            **({"source_organization_url": release.base_url} if release.base_url else {}),
            "evaluator_relationship": "third_party",
            "additional_details": {
                "store_sha256": release.store_sha256,
                "scoring_version": str(entry.board.scoring_version),
            },
        },
        "eval_library": {"name": "quench-bench", "version": prose(version or "unknown")},
        "model_info": {
            "name": prose(submission.title),
            "id": name,
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "open_weights" if hub else "unknown",
                "submission": prose(submission.name),
                "unlearning_method": prose(submission.method),
                "kind": submission.kind,
                "weights_sha256": prose(submission.weights_sha256 or "unknown"),
            },
        },
        "evaluation_results": [_result(entry, release, *place) for place in measured],
    }


def _measured(entry: Entry) -> Iterator[tuple[MetricResult, QuantizerResult, CellResult]]:
    for under in entry.row.by_quantizer.values():
        for metric, found in under.metrics.items():
            yield found, under, under.cells[metric]


def _result(
    entry: Entry, release: Release, found: MetricResult, under: QuantizerResult, cell: CellResult
) -> dict[str, Any]:
    info = METRICS[found.metric]
    least, most = 0.0, info.display_scale
    if found.metric == PRIVACY:
        # An AUC of 0 and one of 1, seen from the retrained model's.
        reference = quantities.reference_auc(cell) or 1.0
        least, most = -100.0, 100 * (1 - reference) / reference
    return {
        "evaluation_name": prose(f"{cell.cell.task} under {cell.cell.quantizer}"),
        "source_data": _source(entry.board.corpus, release.corpora.get(entry.board.corpus)),
        "evaluation_timestamp": _epoch(cell.provenance.created_at),
        "metric_config": {
            "evaluation_description": info.description,
            "lower_is_better": info.direction == "lower",
            "score_type": "continuous",
            "min_score": least,
            "max_score": most,
            "additional_details": {
                "metric": found.metric,
                "ideal": {"lower": "lowest", "higher": "highest", "toward_zero": "0"}[info.direction],
                "quantizer": prose(under.spec.name),
                "quantizer_label": prose(under.spec.label),
                "bits": str(under.spec.bits),
            },
        },
        "score_details": {
            "score": found.score.value * info.display_scale,
            "uncertainty": _uncertainty(found.score, cell, info.display_scale),
            "details": _details(found),
        },
    }  # fmt: skip


def _uncertainty(score: Estimate, cell: CellResult, scale: float) -> dict[str, Any]:
    documents = next((stored.num_docs for stored in cell.scores), 0)
    if score.low is None or score.high is None:
        return {"num_samples": documents}
    return {
        "confidence_interval": {
            "lower": score.low * scale, "upper": score.high * scale, "confidence_level": CONFIDENCE,
            "method": "percentile bootstrap over documents",
        },
        "num_samples": documents,
        "num_bootstrap_samples": RESAMPLES,
    }  # fmt: skip


def _details(found: MetricResult) -> dict[str, str]:
    """Returns what the board says besides, as the texts that the form asks for."""
    said: dict[str, str] = {"verdict": found.verdict or "none"}
    for name, estimate in (("remaining_share", found.rho), ("recovery", found.recovery)):
        if estimate is not None:
            said[name] = json.dumps([estimate.value, estimate.low, estimate.high])
    return said


def _source(corpus: str, known: Corpus | None) -> dict[str, Any]:
    if known is None or known.hub_repo is None:
        return {"dataset_name": prose(known.title if known else corpus), "source_type": "other"}
    return {
        "dataset_name": known.title, "source_type": "hf_dataset", "hf_repo": known.hub_repo,
        "additional_details": {"revision": known.revision or "unknown"},
    }  # fmt: skip


def _epoch(moment: str) -> str:
    try:
        found = datetime.fromisoformat(moment)
    except ValueError:
        return "0"
    return str(int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()))


def hub_results(entry: Entry, release: Release) -> str | None:
    """Returns an entry's scores as a file for ``.eval_results/`` of its model repository on the hub.

    One item per primary metric and quantizer; the notes name the quantizer.

    Returns:
        YAML; None where the corpus has no dataset on the hub, which every item must name.

    Source: "Evaluation Results" of the hub's documentation.
    """
    corpus = release.corpora.get(entry.board.corpus)
    if corpus is None or corpus.hub_repo is None:
        return None
    dataset = {"id": corpus.hub_repo, **({"revision": corpus.revision} if corpus.revision else {})}
    source = (
        {"source": {"url": release.base_url + entry.page, "name": prose(release.title)}} if release.base_url else {}
    )
    items = [
        {
            "dataset": {**dataset, "task_id": prose(cell.cell.task)},
            "value": found.score.value * METRICS[found.metric].display_scale,
            "date": prose(cell.provenance.created_at[:10]),
            **source,
            "notes": prose(
                f"{METRICS[found.metric].label}, {under.spec.label} ({under.spec.name}); Quench scoring version"
                f" {cell.provenance.scoring_version}, cell {cell.cell.key[:12]}"
            ),
        }
        for found, under, cell in _measured(entry)
    ]
    return yaml.safe_dump(items, sort_keys=False, allow_unicode=True, width=1000)
