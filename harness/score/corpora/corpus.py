"""One corpus: its facts, its texts, the reference value of its PrivLeak.

Texts come from a given folder in MUSE's local form (``CONFIG/SPLIT.json``),
from ``data/`` beside the corpus's YAMLs, or from the hub at a pinned commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from harness.errors import CorpusError
from harness.provenance import sha256_json
from harness.score.corpora import files as corpus_files

Documents = list[dict[str, str]]
SplitName = tuple[str, str]
ReferenceAuc = float | Literal["own"] | None
"""AUC that PrivLeak is relative to: a number, the scored model's own, or (None) what the corpus states."""

SPLITS_OF: Mapping[str, tuple[SplitName, ...]] = {
    "verbmem_f": (("verbmem", "forget"),),
    "knowmem_f": (("knowmem", "forget_qa"), ("knowmem", "forget_qa_icl")),
    "knowmem_r": (("knowmem", "retain_qa"), ("knowmem", "retain_qa_icl")),
    "privleak": (("privleak", "forget"), ("privleak", "holdout")),
}
"""The splits that each metric reads; MUSE's ``privleak/retain`` serves none of them."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One corpus, with the facts of its ``corpus.json``.

    Attributes:
        name: ``mini``, ``news`` or ``books``.
        title: What pages call it.
        label: One honest paragraph for pages: what it can show and what not.
        tasks: Its tasks, in the order of ``metrics.table.PRIMARY``.
        group: lm-eval group of those tasks.
        reference_auc: Min-40% AUC of the retrained model; None where the
            corpus states none: then a retrain control's is measured first.
        reference_source: Where that value comes from.
        source: Where the texts come from, for readers.
        hub_repo: Data set on the hub, None for a corpus without one.
        revision: Commit of ``hub_repo``.
        license: Licence as its publisher declares it.
        license_note: What that licence leaves open.
        pinned_sha256: Digest that the shipped texts must have, None if any will do.
        split_sha256: The same by ``CONFIG/SPLIT``, for as many as are known.
        folder: Folder of the YAMLs.
        data_dir: Folder in MUSE's local form that was given; None for the default.
        ships: Whether it comes with Quench.
    """

    name: str
    title: str
    label: str
    tasks: tuple[str, ...]
    group: str
    reference_auc: float | None
    reference_source: str | None
    source: str
    hub_repo: str | None
    revision: str | None
    license: str
    license_note: str | None
    pinned_sha256: str | None
    split_sha256: Mapping[str, str]
    folder: Path
    data_dir: Path | None
    ships: bool = True

    @cached_property
    def data_sha256(self) -> str:
        """Digest over all texts that the tasks read; loads them on first use.

        Raises:
            CorpusError: Texts are missing or malformed, or the shipped ones
                are not those that ``corpus.json`` pins.
        """
        metrics = (task.removeprefix(f"{self.group}_") for task in self.tasks)
        used = sorted({split for metric in metrics for split in SPLITS_OF[metric]})
        digest = sha256_json({f"{config}/{split}": load_split(self, config, split) for config, split in used})
        if self.data_dir is None and self.pinned_sha256 not in (None, digest):
            raise CorpusError(
                f"The texts of corpus {self.name!r} have the digest {digest}, but {self.folder / 'corpus.json'} pins"
                f" {self.pinned_sha256}: restore the texts, or build the corpus again."
            )
        return digest


def load_split(corpus: Corpus, config: str, split: str) -> Documents:
    """Returns one split; items of ``privleak`` and ``raw`` become ``{"text": ...}``.

    Args:
        corpus: The corpus.
        config: ``knowmem``, ``verbmem``, ``privleak`` or ``raw``.
        split: Name of the split, e.g. ``forget_qa``.

    Raises:
        CorpusError: The file is missing, malformed or empty, holds other
            texts than ``corpus.json`` pins (those of a given folder may be
            others), or the hub can't be reached; the sentence says what to do.
    """
    pinned = corpus.split_sha256.get(f"{config}/{split}")
    if corpus.data_dir is not None:
        remedy = "give --data-dir a folder in MUSE's local form."
        return corpus_files.read_split(corpus.data_dir, config, split, remedy)
    if corpus.hub_repo is None:
        remedy = f"it ships with Quench; restore {corpus.folder / 'data'} or run `quench mini build --data-only`."
        if not corpus.ships:
            remedy = f"see `quench corpus check {corpus.folder}`."
        return corpus_files.read_split(corpus.folder / "data", config, split, remedy, sha256=pinned)
    folder = corpus_files.hub_folder(corpus.name, corpus.hub_repo, str(corpus.revision), config, split)
    remedy = f"delete {folder} so that it is fetched again."
    return corpus_files.read_split(folder, config, split, remedy, sha256=pinned)


def foreign_splits(corpus: Corpus, metric: str) -> tuple[str, ...]:
    """Returns the splits of a metric that the given folder fills with other texts than the corpus's own.

    None can be told where no folder was given or ``corpus.json`` pins nothing.
    A pin over the whole corpus does not tell which splits differ: all count.
    """
    names = {f"{config}/{split}": (config, split) for config, split in SPLITS_OF[metric]}
    if corpus.data_dir is None:
        return ()
    if corpus.pinned_sha256 not in (None, corpus.data_sha256):
        return tuple(names)
    pins = corpus.split_sha256
    return tuple(name for name in names if name in pins and pins[name] != corpus_files.digest(
        load_split(corpus, *names[name])))  # fmt: skip


def reference_auc(corpus: Corpus, reference: ReferenceAuc = None) -> float | None:
    """Returns the AUC that PrivLeak is relative to; None for the scored model's own, whose PrivLeak is 0.

    Args:
        corpus: The corpus.
        reference: A measured AUC or ``own``; None takes what ``corpus.json`` states.

    Raises:
        CorpusError: There is none, or it is outside (0, 1].
    """
    if reference == "own":
        return None
    value = corpus.reference_auc if reference is None else reference
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
        raise CorpusError(
            f"Corpus {corpus.name!r} has no usable reference AUC ({value!r}), so PrivLeak can't be computed: measure"
            f" the retrained model's Min-40% AUC and state it as 'reference_auc' in {corpus.folder / 'corpus.json'}."
        )
    return float(value)


def icl_documents(corpus: Corpus, split: str, pairs: int) -> Documents:
    """Returns the first ``pairs`` in-context questions and answers of a ``knowmem`` split.

    Raises:
        CorpusError: There are fewer.
    """
    found = load_split(corpus, "knowmem", split)
    if len(found) < pairs:
        raise CorpusError(
            f"knowmem/{split} of corpus {corpus.name!r} has {len(found)} pairs, but the task's 'icl_pairs' asks for"
            f" {pairs}: use the corpus's own data."
        )
    return found[:pairs]
