"""Builds the miniature: corpus, controls and demo submissions, in the repository's own layout.

::

    OUT/tasks/muse_mini/data/CONFIG/SPLIT.json   the generated corpus
    OUT/tasks/muse_mini/corpus.json              its digest and reference AUC
    OUT/submissions/SLUG/submission.yaml         one folder per model
    OUT/submissions/SLUG/weights/                safetensors

Everything is trained on the CPU in float32 with one thread, so one machine
gives the same bytes every time. Other machines may differ in the last bits.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.mini import demo_set, pretraining, world
from harness.mini.born_target import BORN_BITS, BORN_GROUP, round_linear_layers
from harness.mini.reference import CORPUS, TASKS, write_reference
from harness.mini.tokenizer import train_tokenizer
from harness.provenance import sha256_json
from harness.records import Submission
from harness.submit.checkpoint.prepare import weights_digest
from harness.unlearn.recipes import load_recipe
from harness.unlearn.submission_folder import WEIGHTS, read_manifest, write_entry, write_submission
from harness.unlearn.trainer import unlearn
from harness.unlearn.weight_files import load_dense, write_model

BUILD_VERSION = 1
"""Counted up when the same recipes would give other weights: older folders are then built anew."""


OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build did.

    Attributes:
        out: Root of the layout.
        data_files_sha256: Digest of the corpus's files.
        trained: Names of the submissions that were built now.
        kept: Names of those that were there already.
        seconds: Wall-clock seconds of each that was built.
        reference_auc: Min-40% AUC of the retrain model; None with ``data_only``.
    """

    out: Path
    data_files_sha256: str
    trained: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    reference_auc: float | None = None


def build(out: Path, *, seed: int = 0, data_only: bool = False, fresh: bool = False,
          on_progress: OnProgress | None = None) -> BuildReport:  # fmt: skip
    """Writes the miniature below ``out``.

    A submission whose folder is complete and was made by the same recipe from
    the same inputs is kept.

    Args:
        out: Root of the layout; made if need be.
        seed: Seed of the world, of the weights and of unlearning.
        data_only: Writes the corpus only.
        fresh: Builds every submission again.
        on_progress: Called with (name, steps done, steps in all).

    Raises:
        ScoringError: The retrain model has no AUC.
    """
    made = world.generate(seed)
    digest = world.write(made, out / TASKS / "data")
    if data_only:
        return BuildReport(out=out, data_files_sha256=digest)
    workshop = _Workshop(out, made, digest, fresh, on_progress or (lambda name, done, steps: None))
    with one_thread():
        workshop.controls()
        workshop.demos()
        auc = write_reference(out, workshop.folder(demo_set.RETRAIN) / WEIGHTS, seed=seed)
    return BuildReport(
        out=out,
        data_files_sha256=digest,
        trained=tuple(workshop.seconds),
        kept=tuple(workshop.kept),
        seconds=workshop.seconds,
        reference_auc=auc,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """The order of additions, and with it the last bits, must not depend on the machine's cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Workshop:
    """Makes the submissions of one build, one after the other."""

    def __init__(self, out: Path, made: world.World, digest: str, fresh: bool, report: OnProgress) -> None:
        self.out, self.world, self.digest, self.fresh, self.report = out, made, digest, fresh, report
        self.kept: list[str] = []
        self.seconds: dict[str, float] = {}

    @cached_property
    def tokenizer(self) -> Any:
        splits = ("forget", "retain1", "retain2", "holdout")
        return train_tokenizer(text for split in splits for text in self.world.files[f"raw/{split}"])

    def folder(self, slug: str) -> Path:
        return self.out / "submissions" / slug

    def controls(self) -> None:
        self._pretrain(demo_set.PLAIN_TARGET, pretraining.TARGET_SPLITS, pretraining.TARGET_EPOCHS)
        self._round_target()
        self._pretrain(demo_set.RETRAIN, pretraining.RETRAIN_SPLITS, pretraining.RETRAIN_EPOCHS)

    def demos(self) -> None:
        for demo in demo_set.DEMOS:
            self._unlearn(demo)

    def _make(self, slug: str, inputs: Mapping[str, Any], make: Callable[[Path, str], None]) -> None:
        """Calls ``make`` with an empty weights folder and the digest of the inputs, unless that was done before.

        The manifest is written last: a folder with one is complete.
        """
        folder = self.folder(slug)
        recipe = sha256_json({"build": BUILD_VERSION, "seed": self.world.seed, "data": self.digest, **inputs})
        if not self.fresh and _is_complete(folder, recipe):
            self.kept.append(slug)
            return
        shutil.rmtree(folder, ignore_errors=True)
        (folder / WEIGHTS).mkdir(parents=True)
        started = time.perf_counter()
        make(folder, recipe)
        self.seconds[slug] = time.perf_counter() - started

    def _steps(self, slug: str) -> Callable[[int, int], None]:
        return lambda done, steps: self.report(slug, done, steps)

    def _pretrain(self, slug: str, splits: tuple[str, ...], epochs: int) -> None:
        target = slug == demo_set.PLAIN_TARGET
        settings = {
            "trained_on": [f"raw/{split}" for split in splits],
            "epochs": epochs,
            "brief_article_epochs": pretraining.BRIEF_EPOCHS,
            "window": pretraining.WINDOW,
            "batch_size": pretraining.WINDOWS_PER_STEP,
            "optimizer": "AdamW, cosine learning rate",
            "learning_rate": pretraining.SETTINGS.learning_rate,
            "betas": list(pretraining.SETTINGS.betas),
            "weight_decay": pretraining.SETTINGS.weight_decay,
            "warmup_share": pretraining.SETTINGS.warmup_share,
            "max_grad_norm": pretraining.SETTINGS.max_grad_norm,
            "update_precision": pretraining.SETTINGS.update_precision,
            "trainer": "transformers.Trainer",
            "seed": self.world.seed,
        }

        def make(folder: Path, recipe: str) -> None:
            import torch

            model, steps = pretraining.pretrain(
                self.world, self.tokenizer, splits, epochs, on_progress=self._steps(slug)
            )
            write_model(model.to(torch.bfloat16), self.tokenizer, folder / WEIGHTS)
            write_submission(
                folder,
                title="MUSE-mini target, plain" if target else "MUSE-mini retrain",
                method="none (target)" if target else "none (retrained without the forget set)",
                corpus=CORPUS,
                kind="full_model",
                role="target" if target else "retrain",
                hyperparameters=settings | {"steps": len(steps), "build_sha256": recipe},
                authors=demo_set.AUTHORS,
                license=demo_set.LICENSE,
                notes=demo_set.PLAIN_NOTES if target else demo_set.RETRAIN_NOTES,
            )

        self._make(slug, settings | {"architecture": dict(pretraining.ARCHITECTURE)}, make)

    def _round_target(self) -> None:
        """Makes the born-4-bit target from the plain one."""
        plain = self.folder(demo_set.PLAIN_TARGET) / WEIGHTS
        settings = {
            "made_from": demo_set.PLAIN_TARGET,
            "quantizer": f"rtn-{BORN_BITS}bit-g{BORN_GROUP}",
            "bits": BORN_BITS,
            "group_size": BORN_GROUP,
            "symmetric": False,
            "stored_as": "dequantized bfloat16, rounded until rounding changes nothing",
        }

        def make(folder: Path, recipe: str) -> None:
            import torch

            model, _ = load_dense(plain, "cpu")
            round_linear_layers(model)
            write_model(model.to(torch.bfloat16), self.tokenizer, folder / WEIGHTS)
            write_submission(
                folder,
                title="MUSE-mini target, born 4-bit",
                method="none (target)",
                corpus=CORPUS,
                kind="full_model",
                role="target",
                hyperparameters=settings | {"seed": self.world.seed, "build_sha256": recipe},
                authors=demo_set.AUTHORS,
                license=demo_set.LICENSE,
                notes=demo_set.BORN_NOTES,
            )

        self._make(demo_set.BORN_TARGET, settings | {"base": self._weights_of(demo_set.PLAIN_TARGET)}, make)

    def _weights_of(self, slug: str) -> str:
        return str((read_manifest(self.folder(slug)) or {}).get("weights_sha256"))

    def _unlearn(self, demo: demo_set.Demo) -> None:
        recipe = load_recipe(demo.recipe)
        base = self.folder(demo.target) / WEIGHTS

        def make(folder: Path, digest: str) -> None:
            log = unlearn(
                recipe,
                base=base,
                tokenizer=base,
                forget_texts=self.world.files["raw/forget"],
                retain_texts=self.world.files["raw/retain1"],
                out=folder / WEIGHTS,
                seed=self.world.seed,
                base_name=demo.target,
                on_progress=self._steps(demo.slug),
            )
            write_entry(
                folder,
                recipe=recipe,
                log=log,
                title=demo.title,
                corpus=CORPUS,
                target=demo.target,
                retrain=demo_set.RETRAIN,
                hyperparameters={"forget_data": "raw/forget", "retain_data": "raw/retain1", "build_sha256": digest},
                authors=demo_set.AUTHORS,
                license=demo_set.LICENSE,
                notes=demo.notes,
            )

        self._make(demo.slug, {"recipe": recipe.digest, "base": self._weights_of(demo.target)}, make)


def _is_complete(folder: Path, recipe: str) -> bool:
    values = read_manifest(folder)
    if values is None or (values.get("hyperparameters") or {}).get("build_sha256") != recipe:
        return False
    weights = folder / WEIGHTS
    if not any(weights.glob("*.safetensors")):
        return False
    found = weights_digest(_bare_submission(folder, values))
    return found == values.get("weights_sha256")


def _bare_submission(folder: Path, values: Mapping[str, Any]) -> Submission:
    return Submission(
        name=folder.name, title=folder.name, method=str(values["method"]), corpus=CORPUS, kind=values["kind"],
        role=values["role"], target=None, retrain=None, base_model=None, base_revision=None,
        weights=str((folder / WEIGHTS).resolve()), revision=None, weights_sha256=None, folder=str(folder.resolve()),
    )  # fmt: skip
