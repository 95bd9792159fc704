"""The functions that task YAMLs name: documents, results and aggregations for lm-eval.

lm-eval calls the ``*_documents`` functions with a task's ``dataset_kwargs``
and with its metadata, which hold what the command line gave: the model
arguments ``pretrained`` and ``tokenizer``, and ``data_dir``. Where no
``data_dir`` was given the environment variable ``QUENCH_DATA_DIR`` counts.

Run as ``python -m harness.score.lm_eval_hooks run --model quench ...`` this
module is lm-eval's own command line with Quench's language model registered,
which PrivLeak needs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from harness.errors import CorpusError, ScoringError
from harness.score.corpora import catalogue
from harness.score.metrics import formulas
from harness.score.metrics.formulas import MEMBERSHIP_PERCENT, MIN_TOKENS
from harness.tokenizer import named_tokenizer

MEMBERSHIP_KEY = f"min_k_{MEMBERSHIP_PERCENT}"
DATA_DIR_VARIABLE = "QUENCH_DATA_DIR"
_FUNCTION = "!function "
LANGUAGE_MODEL = "harness.score.model.language_model:QuenchLM"

Document = dict[str, Any]


class SharedTokenizer:
    """A loaded tokenizer on its way through lm-eval's task metadata.

    lm-eval copies metadata deeply into its results; copying this holder
    returns the holder itself.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedTokenizer:
        return self


def _corpus(name: str, data_dir: str | None) -> catalogue.Corpus:
    chosen = os.environ.get(DATA_DIR_VARIABLE) if data_dir is None else data_dir
    return catalogue.load_corpus(name, data_dir=Path(chosen) if chosen else None)


def _tokenizer(tokenizer: Any, pretrained: Any) -> Any:
    if isinstance(tokenizer, SharedTokenizer):
        return tokenizer.tokenizer
    name = tokenizer or pretrained
    if not isinstance(name, str):
        raise ScoringError(
            "VerbMem cuts its references with the model's tokenizer, but none was named: give lm-eval the model"
            " argument tokenizer=FOLDER (or pretrained=FOLDER), or the same in TaskManager's metadata."
        )
    return named_tokenizer(name)


def _dataset(split: str, documents: Sequence[Document]) -> dict[str, Any]:
    from datasets import Dataset

    return {split: Dataset.from_list(list(documents))}


def verbmem_documents(
    *, corpus: str, reference_tokens: int, tokenizer: Any = None, pretrained: Any = None, data_dir: str | None = None,
    **_: Any,
) -> dict[str, Any]:  # fmt: skip
    """Returns VerbMem's documents: ``prompt``, and ``reference`` cut to its first tokens.

    Args:
        corpus: Name of the corpus.
        reference_tokens: Tokens of the reference that count, BOS included
            where the tokenizer adds one.
        tokenizer: Its folder, or a ``SharedTokenizer``.
        pretrained: The model's folder, where there is no ``tokenizer``.
        data_dir: Folder in MUSE's local form.

    Source: ``muse_bench/metrics/verbmem.py``.
    """
    encoder = _tokenizer(tokenizer, pretrained)
    found = catalogue.load_split(_corpus(corpus, data_dir), "verbmem", "forget")
    documents = [
        {
            "index": index,
            "split": "forget",
            "prompt": item["prompt"],
            "reference": encoder.decode(
                encoder(item["gt"], add_special_tokens=True)["input_ids"][:reference_tokens], skip_special_tokens=True
            ),
        }
        for index, item in enumerate(found)
    ]
    return _dataset("forget", documents)


def knowmem_documents(
    *, corpus: str, questions: str, icl_pairs: int, data_dir: str | None = None, **_: Any
) -> dict[str, Any]:
    """Returns KnowMem's documents: ``prompt`` with its in-context pairs, and ``reference``.

    The prompt ends in ``Answer: `` with the space; without it answers differ.

    Args:
        corpus: Name of the corpus.
        questions: ``forget_qa`` or ``retain_qa``.
        icl_pairs: In-context pairs before every question.
        data_dir: Folder in MUSE's local form.

    Source: ``muse_bench/metrics/knowmem.py``.
    """
    source = _corpus(corpus, data_dir)
    pairs = catalogue.icl_documents(source, f"{questions}_icl", icl_pairs)
    shots = "".join(f"Question: {pair['question']}\nAnswer: {pair['answer']}\n\n" for pair in pairs)
    documents = [
        {
            "index": index,
            "split": questions,
            "prompt": f"{shots}Question: {item['question']}\nAnswer: ",
            "reference": item["answer"],
        }
        for index, item in enumerate(catalogue.load_split(source, "knowmem", questions))
    ]
    return _dataset(questions, documents)


def membership_documents(corpus: catalogue.Corpus) -> list[Document]:
    """Returns the texts that PrivLeak tells apart, forget and holdout by turns.

    By turns, so that the first N documents hold both splits; ``position`` is
    a text's place in its own split.
    """
    forget, holdout = (catalogue.load_split(corpus, "privleak", split) for split in ("forget", "holdout"))
    turns = [
        {"split": split, "position": position, "text": item["text"]}
        for position, pair in enumerate(zip_longest(forget, holdout))
        for split, item in zip(("forget", "holdout"), pair, strict=True)
        if item is not None
    ]
    return [{"index": index, **turn} for index, turn in enumerate(turns)]


def privleak_documents(
    *, corpus: str, data_dir: str | None = None, reference_auc: catalogue.ReferenceAuc = None, **_: Any
) -> dict[str, Any]:
    """Returns PrivLeak's documents: ``text``, ``split``, ``position`` and ``reference_auc``.

    Args:
        corpus: Name of the corpus.
        data_dir: Folder in MUSE's local form.
        reference_auc: A measured AUC, or ``own`` for the model that is the
            reference itself; None takes what the corpus states.

    Raises:
        CorpusError: There is no reference AUC.
    """
    source = _corpus(corpus, data_dir)
    reference = catalogue.reference_auc(source, reference_auc)
    documents = [document | {"reference_auc": reference} for document in membership_documents(source)]
    return _dataset("interleaved", documents)


def _response_scores(primary: str, document: Mapping[str, Any], response: str) -> dict[str, float]:
    scores = formulas.rouge(document["reference"], response)
    return {
        primary: scores.rouge_l,
        "rougeL_recall": scores.rouge_l_recall,
        "rouge1": scores.rouge_1,
        "rouge1_recall": scores.rouge_1_recall,
        **formulas.degeneration(response),
    }


def verbmem_results(document: Mapping[str, Any], responses: Sequence[str]) -> dict[str, float]:
    """Returns the scores of one VerbMem response by metric key."""
    return _response_scores("verbmem_f", document, responses[0])


def knowmem_f_results(document: Mapping[str, Any], responses: Sequence[str]) -> dict[str, float]:
    """Returns the scores of one answer on the forget set by metric key."""
    return _response_scores("knowmem_f", document, formulas.cut_answer(responses[0]))


def knowmem_r_results(document: Mapping[str, Any], responses: Sequence[str]) -> dict[str, float]:
    """Returns the scores of one answer on the retain set by metric key."""
    return _response_scores("knowmem_r", document, formulas.cut_answer(responses[0]))


def membership_record(document: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    """Returns one text's ``split``, ``scores`` and ``invalid_reason`` (None when it counts).

    Args:
        document: One of ``membership_documents``.
        answer: What the language model's ``token_logprobs`` gave for its text.
    """
    logprobs = answer["logprobs"]
    record: dict[str, Any] = {"split": document["split"], "scores": {}, "invalid_reason": None}
    if len(logprobs) < MIN_TOKENS:
        record["invalid_reason"] = (
            f"item {document['position']} of privleak/{document['split']}.json has {len(logprobs)} scored tokens, but"
            f" Min-{MEMBERSHIP_PERCENT}% needs at least {MIN_TOKENS}: put a longer text there, or leave it out"
        )
    elif not all(map(math.isfinite, logprobs)):
        bad = sum(not math.isfinite(value) for value in logprobs)
        record["invalid_reason"] = f"{bad} of {len(logprobs)} log-probabilities are not finite"
    else:
        record["scores"] = formulas.membership_scores(logprobs, answer["means"], answer["stds"], document["text"])
    return record


def privleak_results(document: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns one text's record for both aggregations, with the reference AUC."""
    record = membership_record(document, answers[0]) | {"reference_auc": document["reference_auc"]}
    return {"privleak": record, "auc": record}


def membership_auc(records: Sequence[Mapping[str, Any]], score: str = MEMBERSHIP_KEY) -> float | None:
    """Returns the AUC of one membership score over valid texts; None where a split has none."""
    sides = [
        [record["scores"][score] for record in records if record["split"] == split and score in record["scores"]]
        for split in ("forget", "holdout")
    ]
    return formulas.auc(*sides) if all(sides) else None


def aggregate_auc(records: Sequence[Mapping[str, Any]]) -> float:
    """Returns the Min-40% AUC for lm-eval's table; NaN where a split has no valid text."""
    value = membership_auc(records)
    return math.nan if value is None else value


def aggregate_privleak(records: Sequence[Mapping[str, Any]]) -> float:
    """Returns PrivLeak in percent for lm-eval's table; NaN where a split has no valid text."""
    value = privleak_of(membership_auc(records), records)
    return math.nan if value is None else value


def privleak_of(auc: float | None, records: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns PrivLeak in percent from the records' AUC, None without one; 0 where the model is the reference."""
    if auc is None:
        return None
    reference = records[0]["reference_auc"]
    return 0.0 if reference is None else formulas.privleak(auc, reference)


@cache
def _membership_task() -> type[Any]:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask

    class MembershipTask(ConfigurableTask):  # type: ignore[misc]
        """lm-eval task whose requests ask for the log-probability of every token."""

        def __init__(self, config: dict[str, Any]) -> None:
            # lm-eval knows no such output type; the nearest one keeps its checks content.
            settings = {key: value for key, value in config.items() if key != "class"}
            super().__init__(config=settings | {"output_type": "loglikelihood_rolling"})
            self.OUTPUT_TYPE = self.config.output_type = "token_logprobs"

        def construct_requests(self, doc: Document, ctx: str, **kwargs: Any) -> Any:
            return Instance(
                request_type="token_logprobs", doc=doc, arguments=(doc["text"],), idx=0, metadata=kwargs["metadata"]
            )

    return MembershipTask


def with_functions(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a task's settings with functions of this module in the place of their names.

    For tasks that lm-eval must not read from their files, because strangers wrote those.

    Raises:
        CorpusError: A setting names a function of another module.
    """
    found = dict(settings)
    for key, value in settings.items():
        if key == "metric_list":
            found[key] = [with_functions(metric) for metric in value]
        elif isinstance(value, str) and value.startswith(_FUNCTION):
            module, _, name = value.removeprefix(_FUNCTION).rpartition(".")
            if module != "harness.score.lm_eval_hooks":
                raise CorpusError(
                    f"The setting {key!r} names {value}: functions of harness.score.lm_eval_hooks alone can."
                )
            found[key] = globals().get(name) or __getattr__(name)
    return found


def register_language_model() -> None:
    """Makes ``--model quench`` known to lm-eval, in this process."""
    from lm_eval.api.registry import model_registry

    if "quench" not in model_registry:
        model_registry.register("quench", target=LANGUAGE_MODEL)


def __getattr__(name: str) -> Any:
    # Its base class is lm-eval's, which must not be imported together with this module.
    if name == "MembershipTask":
        return _membership_task()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    register_language_model()
    try:
        cli_evaluate()
    except (CorpusError, ScoringError) as error:
        raise SystemExit(str(error)) from None
