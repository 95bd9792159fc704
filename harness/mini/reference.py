"""The miniature's reference AUC: the retrain model's, measured at 16 bit."""

from __future__ import annotations

import json
import os
from pathlib import Path

from harness.mini.demo_set import RETRAIN
from harness.paths import content_dir
from harness.tokenizer import load_tokenizer
from harness.unlearn.weight_files import load_dense

CORPUS = "mini"
TASKS = Path("tasks/muse_mini")


def write_reference(out: Path, retrain: Path, *, seed: int) -> float:
    """Measures the retrain model's AUC and writes it, with the data's digest, to ``corpus.json``.

    Args:
        out: Root of the layout, with the corpus's data below it.
        retrain: Folder of the retrain model.
        seed: Seed of the build, named in ``reference_source``.

    Returns:
        The AUC.

    Raises:
        ScoringError: The model's log-probabilities are not finite.
    """
    from harness.score.corpora.catalogue import load_corpus
    from harness.score.evaluation import membership_auc

    data = out / TASKS / "data"
    model, _ = load_dense(retrain, "cpu")
    auc = membership_auc(model.eval(), load_tokenizer(retrain), CORPUS, data_dir=data, device="cpu")
    path = out / TASKS / "corpus.json"
    shipped = path if path.is_file() else content_dir("tasks") / TASKS.name / "corpus.json"
    facts = json.loads(shipped.read_text(encoding="utf-8"))
    facts |= {
        "reference_auc": auc,
        "reference_source": f"Min-40% AUC of {RETRAIN} at 16 bit, seed {seed}, measured by `quench mini build`",
        "data_sha256": load_corpus(CORPUS, data_dir=data).data_sha256,
    }
    half = path.with_suffix(".json.part")
    half.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(half, path)
    return auc
