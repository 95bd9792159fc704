"""Every metric: its name, how it is shown, which direction is good.

The four primary metrics come first. Secondary keys are unique within a cell
but shared by tasks: ``rouge1`` of a KnowMem-retain cell is good when high, of
a forget cell when low; ``direction_in`` knows. Installed packages add others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from harness.records import Direction, MetricInfo
from harness.score.metrics import plugins as metric_plugins
from harness.score.metrics.plugins import PluggedMetric

PRIMARY = ("verbmem_f", "knowmem_f", "knowmem_r", "privleak")
"""The metrics that a leaderboard shows, in its order; each is the last part of its task's name."""

MIN_K_PERCENTS = (5, 10, 20, 30, 40, 50, 60)
"""Shares of least likely tokens that are scored, in percent."""

_MUSE = "MUSE (Shi et al., 2024), section 4"
_SAME_AS_PRIMARY = frozenset({"rougeL_recall", "rouge1", "rouge1_recall"})


def _info(
    key: str, label: str, direction: Direction, description: str, source: str, *, scale: float = 100, unit: str = ""
) -> MetricInfo:
    return MetricInfo(
        key=key,
        label=label,
        unit=unit,
        display_scale=scale,
        direction=direction,
        description=description,
        source=source,
    )


def _primary() -> Iterator[MetricInfo]:
    yield _info(
        "verbmem_f", "VerbMem", "lower",
        "ROUGE-L F1 between the model's greedy continuation of a forgotten text and the text itself.", _MUSE,
    )  # fmt: skip
    yield _info(
        "knowmem_f", "KnowMem", "lower",
        "ROUGE-L F1 of the model's answers to questions about the forgotten texts.", _MUSE,
    )  # fmt: skip
    yield _info(
        "knowmem_r", "Utility", "higher",
        "ROUGE-L F1 of the model's answers to questions about texts it should still know.", _MUSE,
    )  # fmt: skip
    yield _info(
        "privleak", "PrivLeak", "toward_zero",
        "How much better or worse than in the retrained model forgotten texts are told apart from unseen ones:"
        " -100 is memorized, above 0 is over-unlearned.", f"{_MUSE}, equation 5", scale=1, unit="%",
    )  # fmt: skip


def _of_responses() -> Iterator[MetricInfo]:
    own = "this project"
    yield _info("rougeL_recall", "ROUGE-L recall", "lower", "Share of the reference found in the response.", _MUSE)
    yield _info("rouge1", "ROUGE-1", "lower", "F1 of shared words, order ignored.", "rouge-score")
    yield _info("rouge1_recall", "ROUGE-1 recall", "lower", "Share of the reference's words found.", "rouge-score")
    yield _info(
        "extraction_strength", "Extraction strength", "lower",
        "Longest tail of the reference in which every token is the model's first choice, as a share.",
        "Carlini et al., 2023, teacher-forced as in OpenUnlearning",
    )  # fmt: skip
    yield _info(
        "reference_nll", "Reference NLL", "higher", "Mean loss on the true continuation, given the prompt.", own,
        scale=1, unit="nats/token",
    )  # fmt: skip
    yield _info(
        "repetition", "Repetition", "lower", "Share of 4-grams in a response that occurred before in it.",
        "Welleck et al., 2020, section 6",
    )  # fmt: skip
    yield _info("empty", "Empty responses", "lower", "Share of responses without any text.", own, unit="%")
    yield _info(
        "degenerate", "Degenerate responses", "lower", "Share of responses that are empty or mostly repeat themselves.",
        own, unit="%",
    )  # fmt: skip
    yield _info("response_words", "Response length", "higher", "Mean length of a response.", own, scale=1, unit="words")


_ATTACKS = {
    **{f"min_k_{k}": (f"Min-{k}%", "nats/token", "Min-K% Prob (Shi et al., 2024)") for k in MIN_K_PERCENTS},
    "min_k_pp_40": ("Min-K%++ 40%", "", "Min-K%++ (Zhang et al., 2024)"),
    "loss": ("Loss", "nats/token", "mean negative log-likelihood"),
    "zlib_loss": ("Loss over zlib size", "nats/byte", "Carlini et al., 2021, section 5"),
}

MEMBERSHIP_KEYS = tuple(_ATTACKS)
"""Membership scores of one text; each has an AUC, that of ``min_k_40`` being called ``auc``."""


def _of_membership() -> Iterator[MetricInfo]:
    yield _info(
        "auc", "AUC", "toward_zero",
        "Chance that a forgotten text looks less familiar than an unseen one, by Min-40%;"
        " the retrained model's is ideal.",
        f"{_MUSE}; Min-K% Prob (Shi et al., 2024)",
    )  # fmt: skip
    for key, (name, _, source) in _ATTACKS.items():
        if key != "min_k_40":
            yield _info(f"auc_{key}", f"AUC, {name}", "toward_zero", f"The same chance by {name}.", source)
    for key, (name, unit, source) in _ATTACKS.items():
        description = f"Membership score of a text by {name}: low means familiar."
        yield _info(key, name, "higher", description, source, scale=1, unit=unit)
    for split in ("forget", "holdout"):
        yield _info(
            f"loss_{split}", f"Loss, {split}", "higher" if split == "forget" else "lower",
            f"Mean loss on the {split} texts.", "mean NLL", scale=1, unit="nats/token",
        )  # fmt: skip
    yield _info(
        "reference_auc", "Reference AUC", "toward_zero", "AUC of the retrained model, which PrivLeak is relative to.",
        f"{_MUSE}, equation 5",
    )  # fmt: skip
    yield _info("tokens", "Scored tokens", "higher", "Mean number of scored tokens of a text.", "", scale=1)


OWN: Mapping[str, MetricInfo] = MappingProxyType(
    {info.key: info for part in (_primary, _of_responses, _of_membership) for info in part()}
)
"""Quench's own metrics, primary ones first."""


class _Metrics(Mapping[str, MetricInfo]):
    """Quench's own metrics, then those of installed packages, which are looked for when one is first asked for."""

    def __getitem__(self, key: str) -> MetricInfo:
        return OWN[key] if key in OWN else plugged_in()[key].info

    def __iter__(self) -> Iterator[str]:
        yield from (*OWN, *plugged_in())

    def __len__(self) -> int:
        return len(OWN) + len(plugged_in())


METRICS: Mapping[str, MetricInfo] = _Metrics()
"""Every metric that a cell or a document can hold, primary ones first."""


def plugged_in(primary: str | None = None) -> Mapping[str, PluggedMetric]:
    """Returns the metrics that installed packages add, by key.

    Args:
        primary: Only those of the task with this primary metric; None for all.
    """
    usable, _ = metric_plugins.look(frozenset(OWN))
    return {key: metric for key, metric in usable.items() if primary is None or primary in metric.tasks}


def broken() -> Mapping[str, str]:
    """Returns the sentence why a metric that an installed package declares can't be used, by its name."""
    return metric_plugins.look(frozenset(OWN))[1]


def direction_in(metric: str, primary: str) -> Direction:
    """Returns which way ``metric`` is good in cells of the primary metric ``primary``.

    Raises:
        KeyError: One of the two is no known metric.
    """
    return METRICS[primary if metric in _SAME_AS_PRIMARY else metric].direction
