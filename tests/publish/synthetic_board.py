"""A board that looks like the real one: levels per submission and quantizer in, stored cells out.

The levels are those that the miniature's design runs gave, rounded; documents
have a difficulty of their own, so that cells of different models are
correlated as real ones are.
"""

from __future__ import annotations

import hashlib
import math
import random
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from harness.quantize.survival.measure import ALL_LAYERS
from harness.records import (
    Cell,
    CellResult,
    DocumentRecord,
    LayerSurvival,
    Proof,
    Provenance,
    QuantizerSpec,
    Score,
    Submission,
)
from harness.score.metrics.formulas import auc, privleak

Levels = tuple[float, float, float, float]
"""VerbMem, KnowMem, utility (all in percent) and PrivLeak."""

REFERENCE_AUC = 0.5
SPLITS = {"verbmem_f": "forget", "knowmem_f": "forget_qa", "knowmem_r": "retain_qa"}
DOCUMENTS = {"verbmem_f": 32, "knowmem_f": 91, "knowmem_r": 100, "privleak": 72}
_SENTENCE = "the river Oskel rises north of Tarn and was mapped by Imra Voss in 1411 before the regatta"
WORDS = _SENTENCE.split()

SPECS: dict[str, QuantizerSpec] = {
    spec.name: spec
    for spec in (
        QuantizerSpec(name="reference", backend="reference", bits=16, group_size=None, symmetric=None, label="16 bit"),
        *(
            QuantizerSpec(
                name=f"rtn-{bits}bit-g{group}", backend="rtn", bits=bits, group_size=group, symmetric=False,
                label=f"round to nearest, {bits} bit, group {group}, asymmetric",
            )
            for bits, group in ((8, 128), (4, 128), (4, 64), (3, 128), (2, 128))
        ),
        QuantizerSpec(
            name="bnb-nf4", backend="bnb", bits=4, group_size=64, symmetric=None, label="bitsandbytes NF4, group 64"
        ),
    )
}  # fmt: skip
ORDER = tuple(SPECS)


def levels(**given: Levels) -> dict[str, Levels]:
    """Returns levels by quantizer; ``r16``, ``r8``, ``r4``, ``r4g64``, ``nf4``, ``r3``, ``r2``."""
    short = dict(zip(("r16", "r8", "r4", "r4g64", "r3", "r2", "nf4"), ORDER, strict=True))
    return {short[name]: values for name, values in given.items()}


TARGET = levels(
    r16=(98, 80, 82, -96), r8=(98, 80, 82, -96), r4=(98, 80, 82, -96), r4g64=(97, 80, 82, -96), nf4=(97, 79, 80, -96),
    r3=(84, 77, 72, -95), r2=(19, 45, 48, -92),
)  # fmt: skip
RETRAIN = levels(
    r16=(18, 4, 78, 0), r8=(18, 4, 78, 0), r4=(18, 4, 78, 0), r4g64=(18, 4, 78, 1), nf4=(18, 4, 77, -1),
    r3=(16, 3, 70, 0), r2=(18, 2, 54, 1),
)  # fmt: skip
FULL = levels(
    r16=(22, 11, 74, -40), r8=(22, 11, 74, -40), r4=(90, 76, 83, -93), r4g64=(55, 52, 76, -80), nf4=(22, 10, 72, -38),
    r3=(19, 30, 60, -49), r2=(18, 30, 42, -79),
)  # fmt: skip
LORA = levels(
    r16=(21, 8, 72, -58), r8=(21, 8, 72, -58), r4=(21, 8, 72, -62), r4g64=(21, 8, 72, -61), nf4=(21, 8, 70, -59),
    r3=(21, 8, 66, -58), r2=(17, 17, 40, -56),
)  # fmt: skip


def flat(values: Levels) -> dict[str, Levels]:
    """The same levels under every quantizer."""
    return dict.fromkeys(ORDER, values)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One submission of a synthetic board.

    ``changes`` are applied to every cell result, ``drop`` leaves out
    (quantizer, metric) pairs and ``fail`` turns them into failed cells.
    """

    name: str
    levels: Mapping[str, Levels]
    role: str = "entry"
    kind: str = "full_model"
    method: str = "GA+GDR"
    target: str | None = "mini-target-4bit"
    limit: int | None = None
    dirty: bool = False
    drop: frozenset[tuple[str, str]] = frozenset()
    fail: frozenset[tuple[str, str]] = frozenset()
    more: Mapping[str, Any] = field(default_factory=dict)
    created_at: str = "2026-11-02T10:00:00+00:00"


def control(name: str, role: str, values: Mapping[str, Levels]) -> Plan:
    return Plan(name=name, levels=values, role=role, method="none", target=None)


CONTROLS = (
    control("mini-target-4bit", "target", TARGET),
    control("mini-target-plain", "target", TARGET),
    control("mini-retrain", "retrain", RETRAIN),
)


def demo_plans() -> tuple[Plan, ...]:
    """Every kind of verdict and of missing rank."""
    weaker = {name: (v + 8, k + 9, u, p) for name, (v, k, u, p) in LORA.items()}
    collapsed_16 = {**FULL, "reference": (19, 11, 23, -35), "bnb-nf4": (18, 8, 25, -31)}
    text_only = {name: (v, 45, u, p) for name, (v, _, u, p) in LORA.items()}
    return (
        *CONTROLS,
        Plan(name="ga-gdr-full", levels=FULL, more={"title": "GA+GDR, all weights"}),
        Plan(
            name="npo-gdr-full", levels={**FULL, "rtn-4bit-g128": (93, 78, 82, -93)}, method="NPO+GDR",
            more={"paper_url": "https://example.org/npo", "authors": ("A. Author",)},
        ),
        Plan(name="ga-gdr-lora", levels=LORA, kind="lora_adapter", more={"hyperparameters": {"r": 8}}),
        Plan(name="npo-gdr-lora", levels=weaker, kind="lora_adapter", method="NPO+GDR"),
        Plan(name="text-only-lora", levels=text_only, kind="lora_adapter", method="WHP"),
        Plan(name="ga-full-fast", levels=collapsed_16),
        Plan(name="ga-lora-long", levels=flat((4, 1, 1, 9)), kind="lora_adapter", method="GA"),
        Plan(name="noop-lora", levels=TARGET, kind="lora_adapter", method="none"),
        Plan(name="ga-gdr-full-plain", levels=LORA, target="mini-target-plain"),
        Plan(name="npo-limited", levels=FULL, limit=4, method="NPO"),
        Plan(name="simnpo-dirty", levels=LORA, dirty=True, method="SimNPO"),
        Plan(name="npo-crashed", levels=LORA, fail=frozenset({("bnb-nf4", "knowmem_f")}), method="NPO"),
        Plan(name="npo-partial", levels=LORA, drop=frozenset(("bnb-nf4", m) for m in DOCUMENTS), method="NPO"),
    )  # fmt: skip


def many(entries: int) -> tuple[Plan, ...]:
    """Returns the controls and that many entries of all kinds; nothing at all for none."""
    kinds = [plan for plan in demo_plans() if plan.role == "entry"]
    numbered = (replace(kinds[number % len(kinds)], name=f"entry-{number:04d}") for number in range(entries))
    return (*CONTROLS, *numbered) if entries else ()


def cells(plans: Iterable[Plan], *, corpus: str = "mini", quantizers: Sequence[str] = ORDER) -> list[CellResult]:
    """Returns the stored cells of a board, in the order that a run would write them."""
    return [
        _cell(plan, SPECS[quantizer], metric, corpus)
        for plan in plans
        for quantizer in quantizers
        if quantizer in plan.levels
        for metric in DOCUMENTS
        if (quantizer, metric) not in plan.drop
    ]


def as_smol(cells: Sequence[CellResult]) -> list[CellResult]:
    """Cells as the corpus ``smol`` has them: it has no task for KnowMem."""
    return [
        replace(
            cell,
            corpus="smol",
            submission=replace(cell.submission, corpus="smol"),
            cell=replace(cell.cell, task=cell.cell.task.replace("mini", "smol"), key="5" + cell.cell.key[1:]),
        )
        for cell in cells
        if not cell.cell.task.endswith("knowmem_f")
    ]


def submission_of(plan: Plan, corpus: str) -> Submission:
    entry = plan.role == "entry"
    made = Submission(
        name=plan.name, title=plan.name, method=plan.method, corpus=corpus, kind=plan.kind,  # type: ignore[arg-type]
        role=plan.role, target=plan.target, retrain="mini-retrain" if entry else None,  # type: ignore[arg-type]
        base_model=plan.target if plan.kind == "lora_adapter" else None, base_revision=None, weights="weights",
        revision=None, weights_sha256=_sha(plan.name), folder=plan.name,
    )  # fmt: skip
    return replace(made, **plan.more)


def _cell(plan: Plan, spec: QuantizerSpec, metric: str, corpus: str) -> CellResult:
    task = f"muse_{corpus}_{metric}"
    key = _sha(plan.name, spec.name, task, str(plan.limit), plan.created_at)
    result = CellResult(
        cell=Cell(submission=plan.name, quantizer=spec.name, task=task, key=key, limit=plan.limit),
        submission=submission_of(plan, corpus), spec=spec, corpus=corpus, status="finished",
        provenance=Provenance(
            created_at=plan.created_at, versions={"torch": "2.13.0", "transformers": "5.24.0"}, git_commit="a" * 40,
            dirty=plan.dirty, device="cpu (x86_64, 2 cores)", threads=1, seed=0, scoring_version=1,
        ),
        timings={"quantize": 0.1, "score": 0.6}, peak_memory_bytes=600_000_000,
    )  # fmt: skip
    if (spec.name, metric) in plan.fail:
        return replace(
            result, status="failed", stage="quantize", error_type="QuantizationError",
            reason="The proof of model.layers.3.mlp.up_proj fails: 17 levels in a group of 64, at most 16 are allowed.",
            log_tail="quantizing layer 27 of 28\nread back: 17 levels",
        )  # fmt: skip
    level = plan.levels[spec.name]
    if metric == "privleak":
        documents = _texts(plan.name, spec.name, level[3])
    else:
        mine = level[list(SPLITS).index(metric)]
        documents = _answers(plan.name, plan.levels["reference"], spec.name, metric, mine)
    documents = documents[: plan.limit] if plan.limit else documents
    return replace(
        result,
        documents=documents,
        scores=scores_of(metric, documents),
        proof=None if spec.bits == 16 else _proof(plan, spec),
        survival=() if spec.bits == 16 or plan.role != "entry" else _survival(plan, spec),
    )


def scores_of(metric: str, documents: Sequence[DocumentRecord]) -> tuple[Score, ...]:
    """Returns the scores that the scoring room would store for these documents."""
    if metric == "privleak":
        sides = [[d.scores["min_k_40"] for d in documents if d.split == side] for side in ("forget", "holdout")]
        value = auc(*sides)
        return (
            Score(metric="privleak", value=privleak(value, REFERENCE_AUC), num_docs=len(documents)),
            Score(metric="auc", value=value, num_docs=len(documents)),
        )
    return tuple(
        Score(
            metric=key, value=math.fsum(d.scores[key] for d in documents) / len(documents), num_docs=len(documents)
        )
        for key in documents[0].scores
    )  # fmt: skip


@cache
def _answers(plan: str, reference: Levels, spec: str, metric: str, level: float) -> tuple[DocumentRecord, ...]:
    spread = 0.4 if metric == "verbmem_f" else 0.9
    mean = min(max(level / 100, 0.005), 0.995)
    documents = []
    for index in range(DOCUMENTS[metric]):
        difficulty = _normal(metric, index)
        noise = _normal(plan, reference, spec, metric, index)
        score = 1 / (1 + math.exp(-(math.log(mean / (1 - mean)) + 1.0 * difficulty + spread * noise)))
        known = round(score * len(WORDS))
        documents.append(
            DocumentRecord(
                index=index, split=SPLITS[metric], prompt_sha256=_sha(metric, str(index)),
                prompt_excerpt=f"Question: What is known of {metric} {index}?\nAnswer: ",
                response=" ".join(WORDS[:known] + ["nothing"] * (len(WORDS) - known)),
                reference_sha256=_sha("reference", metric, str(index)), reference_excerpt=" ".join(WORDS),
                scores={
                    metric: score, "rouge1": min(1.0, score * 1.05),
                    "degenerate": float(mean < 0.02 and metric == "knowmem_r"),
                },
            )
        )  # fmt: skip
    return tuple(documents)


@cache
def _texts(plan: str, spec: str, level: float) -> tuple[DocumentRecord, ...]:
    wanted = min(max(REFERENCE_AUC * (1 + level / 100), 0.002), 0.998)
    shift = _probit(wanted) * math.sqrt(2)
    documents = []
    for index in range(2 * DOCUMENTS["privleak"]):
        split = "forget" if index % 2 == 0 else "holdout"
        value = 5 + 0.9 * _normal(split, index) + 0.4 * _normal(plan, spec, split, index)
        documents.append(
            DocumentRecord(
                index=index, split=split, prompt_sha256=_sha(split, str(index)),
                prompt_excerpt=f"A brief about number {index}.", response="", reference_sha256=None,
                reference_excerpt="", scores={"min_k_40": value + (shift if split == "forget" else 0), "loss": value},
            )
        )  # fmt: skip
    return tuple(documents)


def _probit(share: float) -> float:
    low, high = -6.0, 6.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 * (1 + math.erf(middle / math.sqrt(2))) < share else (low, middle)
    return low


def _proof(plan: Plan, spec: QuantizerSpec) -> Proof:
    return Proof(
        linear_layers=28, quantized_layers=28, parameter_share=1.0, max_levels=2**spec.bits,
        group_size=spec.group_size, bits_per_weight=spec.bits + 0.25, size_bytes=851_968 * spec.bits // 8,
        max_abs_error=0.01, relative_error=0.08, codes_sha256=_sha("codes", plan.name, spec.name),
        dense_modules=("lm_head", "model.embed_tokens"),
    )  # fmt: skip


def _survival(plan: Plan, spec: QuantizerSpec) -> tuple[LayerSurvival, ...]:
    modules = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
    drowned = plan.kind == "full_model" and spec.name == "rtn-4bit-g128"
    pooled = LayerSurvival(
        layer=ALL_LAYERS, codes_changed=0.01 if drowned else 0.3, update_in_steps=0.05 if drowned else 0.6,
        relative_update=0.03, survival_ratio=0.06 if drowned else 0.95, cosine=0.13 if drowned else 0.95,
        num_weights=524_288, update_norm=1.5, norm_ratio=0.46 if drowned else 1.0,
    )  # fmt: skip
    return pooled, *(
        LayerSurvival(
            layer=f"model.layers.{layer}.{module}", codes_changed=0.01 if drowned else 0.3,
            update_in_steps=0.05 if drowned else 0.6,
            relative_update=0.03 * math.exp(0.2 * _normal(plan.name, layer, module)),
            survival_ratio=0.06 if drowned else 0.95, cosine=0.1 + 0.02 * layer if drowned else 0.95,
            num_weights=16_384 if "attn" in module else 49_152, update_norm=0.2 + 0.1 * layer,
            norm_ratio=0.6 if drowned else 1.0, effective_rank=layer + (40.0 if plan.kind == "full_model" else 8.0),
        )
        for layer in range(4)
        for module in modules
    )  # fmt: skip


@cache
def _normal(*seed: Any) -> float:
    return random.Random(zlib.crc32(repr(seed).encode())).gauss(0, 1)


@cache
def _sha(*parts: str) -> str:
    return hashlib.sha256("/".join(parts).encode()).hexdigest()
