"""The ranked board, as ``ranking.rank`` gives it to pages, tables and charts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.publish.statistics.quantities import Estimate
from harness.publish.thresholds import FORGET_METRICS, TAU, Word
from harness.records import CellResult, QuantizerSpec, Submission
from harness.score.metrics.formulas import PRIMARY


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One word with what it rests on.

    Attributes:
        word: The verdict.
        basis: The metrics it rests on, e.g. ``VerbMem; KnowMem never forgot``.
        reason: What a reader must know besides: a sentence without a full
            stop, empty where there is nothing.
    """

    word: Word
    basis: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricResult:
    """One primary metric of one submission under one quantizer.

    Attributes:
        score: In stored units.
        change: Paired difference to its own 16-bit cell, in stored units: the
            PTQ gap.
        change_p: Its p, adjusted (Holm) for all changes of the submission.
        rho: Remaining share of knowledge; 0 = retrained, 1 = quantized target.
        recovery: rho here minus rho at 16 bit.
        recovered_share: Share of what was unlearned that came back.
        robustness: Q of OpenUnlearning; 1 where nothing changes.
        verdict: Of this metric alone; None where it has no rho by definition.
        note: Why rho is missing.
    """

    metric: str
    score: Estimate
    change: Estimate | None = None
    change_p: float | None = None
    rho: Estimate | None = None
    recovery: Estimate | None = None
    recovered_share: Estimate | None = None
    robustness: Estimate | None = None
    verdict: Word | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizerResult:
    """One submission under one quantizer.

    Attributes:
        metrics: By metric key, as far as measured.
        cells: The stored results behind it, by metric key.
        utility_share: Utility over the quantized target's.
        missing: Why it can't be judged; None where it can.
        impossible: Why its PrivLeak can't be believed; None where it can.
        dirty: Whether a cell behind it, a control's included, was made from
            a tree that differs from its commit.
    """

    spec: QuantizerSpec
    metrics: Mapping[str, MetricResult]
    cells: Mapping[str, CellResult]
    verdict: Verdict
    utility_share: Estimate | None = None
    missing: str | None = None
    impossible: str | None = None
    dirty: bool = False

    @property
    def worst_metric(self) -> MetricResult | None:
        """The metric with the largest remaining share, None where none has one."""
        known = [result for result in self.metrics.values() if result.rho is not None]
        return max(known, key=lambda result: result.rho.value if result.rho else 0.0, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCase:
    """One metric at one bit width under the backend with its largest remaining share."""

    quantizer: str
    result: MetricResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeds:
    """Several seeds of one method at one bit width, each by its own worst case.

    Attributes:
        names: Entries, the one that the others are seeds of first.
        remaining: Mean remaining share; its interval holds the documents' and
            the seeds' uncertainty.
        least: Smallest remaining share among the seeds.
        most: Largest.
        deviation: Standard deviation between seeds.
        certified: Number of seeds with the durability certificate here.
    """

    names: tuple[str, ...]
    remaining: Estimate
    least: float
    most: float
    deviation: float
    certified: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Durability of one entry at one bit width: whether no metric recovers by more than tau under any backend.

    Source: the (tau, precisions) certificate of DurableUn; the interval is ours.

    Attributes:
        recovery: The largest over metrics and backends.
        holds: By value, as the source has it.
    """

    recovery: Estimate
    holds: bool

    @property
    def proven(self) -> bool:
        """Whether the whole interval of the largest recovery is at most tau."""
        return self.holds and self.recovery.high is not None and self.recovery.high <= TAU


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthResult:
    """One entry at one bit width: the worst case over the backends there.

    Attributes:
        quantizers: Names measured at this width, in the board's order.
        quantizer: The worst backend: where ``remaining`` comes from.
        metric: The worst metric there.
        by_metric: Each metric's own worst case, by metric key.
        utility_quantizer: Where ``utility_share``, the least one, comes from.
        privleak: PrivLeak furthest from 0, with its own worst backend.
        rank: 1, 2, ...; None where unranked.
        tier: Entries of one tier can't be told apart; None where unranked.
        seeds: Where other entries are further seeds of this one.
    """

    bits: int
    quantizers: tuple[str, ...]
    verdict: Verdict
    quantizer: str | None = None
    metric: str | None = None
    by_metric: Mapping[str, WorstCase] = field(default_factory=dict)
    remaining: Estimate | None = None
    recovery: Estimate | None = None
    utility_share: Estimate | None = None
    utility_quantizer: str | None = None
    privleak: Estimate | None = None
    privleak_quantizer: str | None = None
    rank: int | None = None
    tier: int | None = None
    unranked_reason: str | None = None
    seeds: Seeds | None = None


@dataclass(frozen=True, slots=True)
class Flag:
    """What a reader must know of an entry beyond its scores.

    Attributes:
        word: One to four words.
        reason: A sentence without a full stop.
        decisive: Whether it leaves the entry without a rank.
    """

    word: str
    reason: str
    decisive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderboardRow:
    """One submission: an entry with its verdicts, or a control.

    Attributes:
        by_quantizer: In the board's order of quantizers.
        by_bits: Entries only.
        certificates: By width below 16, where everything is measured and no
            backend destroys the model.
        flags: Entries only; decisive ones first.
    """

    submission: Submission
    by_quantizer: Mapping[str, QuantizerResult]
    by_bits: Mapping[int, WidthResult] = field(default_factory=dict)
    certificates: Mapping[int, Certificate] = field(default_factory=dict)
    flags: tuple[Flag, ...] = ()

    @property
    def durable_bits(self) -> tuple[int, ...]:
        """Widths at which the certificate holds."""
        return tuple(bits for bits, certificate in self.certificates.items() if certificate.holds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlBand:
    """How uncertain 0 and 1 are at one width: the controls' own intervals, as remaining share of one metric."""

    bits: int
    metric: str
    retrain_low: float
    retrain_high: float
    target_low: float
    target_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """Everything a page of one corpus shows.

    Attributes:
        rows: Entries: ranked ones first, by rank at ``headline_bits``.
        controls: Target and retrained models.
        quantizers: Widest first.
        widths: Bit widths measured, widest first.
        headline_bits: Width that the verdict sentence and the first table show.
        sentence: The verdict in one sentence, computed.
        detail: Which kinds of entries give back what they had forgotten;
            empty where nothing can be said.
        documents: Documents per primary metric.
        statuses: Number of cells by how they ended.
        bands: Where the controls' own intervals lie.
        scoring_version: The newest one present.
        forget_metrics: Metrics that verdicts rest on here.
    """

    corpus: str
    rows: tuple[LeaderboardRow, ...]
    controls: tuple[LeaderboardRow, ...]
    quantizers: tuple[QuantizerSpec, ...]
    widths: tuple[int, ...]
    headline_bits: int
    sentence: str
    detail: str
    documents: Mapping[str, int]
    statuses: Mapping[str, int]
    bands: tuple[ControlBand, ...] = ()
    scoring_version: int = 0
    forget_metrics: tuple[str, ...] = FORGET_METRICS

    @property
    def primary(self) -> tuple[str, ...]:
        """The primary metrics, but for those of forgotten knowledge that the corpus does not have."""
        return tuple(metric for metric in PRIMARY if metric in self.forget_metrics or metric not in FORGET_METRICS)

    def quantizers_at(self, bits: int) -> tuple[str, ...]:
        """Returns the names of the quantizers of one width."""
        return tuple(spec.name for spec in self.quantizers if spec.bits == bits)

    def ranked(self, bits: int) -> list[LeaderboardRow]:
        """Returns ranked entries, best first."""
        found = [row for row in self.rows if bits in row.by_bits and row.by_bits[bits].rank is not None]
        return sorted(found, key=lambda row: row.by_bits[bits].rank or 0)

    def unranked(self, bits: int) -> list[LeaderboardRow]:
        """Returns entries without a rank at this width, by name."""
        found = [row for row in self.rows if bits not in row.by_bits or row.by_bits[bits].rank is None]
        return sorted(found, key=lambda row: row.submission.name)
