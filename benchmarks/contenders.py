"""Three ways to score a model with MUSE's metrics, made comparable: the reference's loop, stock lm-eval, Quench.

Each takes the same documents and returns one score per document, so that
agreement stands beside every ratio:

- ``ReferenceLoop``: one text at a time, as muse_bench describes it; PrivLeak
  runs every text of forget, retain and holdout, and each again in lower case.
- ``StockLmEval``: lm-eval's own ``HFLM`` on the same tasks at a given batch
  size. It has no request for per-token log-probabilities, so PrivLeak is
  measured by ``loglikelihood_rolling`` over forget and holdout: the forward
  passes that it would take, with a sum in place of Min-40%.
- ``Quench``: what ``quench run`` calls.

Source: muse_bench at fcd6651, ``metrics/{verbmem,knowmem,privleak}.py``.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from harness.score import lm_eval_hooks
from harness.score.corpora import catalogue
from harness.score.evaluation import evaluate
from harness.score.metrics import formulas

METRICS = ("verbmem_f", "knowmem_f", "knowmem_r", "privleak")


@dataclass(frozen=True)
class Documents:
    """The documents of one metric: ``task`` of lm-eval, prompts with references, or texts by split."""

    task: str
    prompts: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    splits: tuple[tuple[str, tuple[str, ...]], ...] = ()
    new_tokens: int = 0


def documents(corpus: str, metric: str, tokenizer: Any, data_dir: Path | None, count: int) -> Documents:
    """Returns the first ``count`` documents of a metric (of each split, for PrivLeak)."""
    source = catalogue.load_corpus(corpus, data_dir=data_dir)
    task = f"{source.group}_{metric}"
    if metric == "privleak":
        splits = tuple(
            (split, tuple(item["text"] for item in catalogue.load_split(source, "privleak", split)[:count]))
            for split in ("forget", "retain", "holdout")
        )
        return Documents(task=task, splits=splits)
    settings = catalogue.task_settings(task)
    arguments = dict(settings["dataset_kwargs"]) | {"data_dir": str(data_dir) if data_dir else ""}
    if metric == "verbmem_f":
        arguments["tokenizer"] = lm_eval_hooks.SharedTokenizer(tokenizer)
        (found,) = lm_eval_hooks.verbmem_documents(**arguments).values()
    else:
        (found,) = lm_eval_hooks.knowmem_documents(**arguments).values()
    found = list(found)[:count]
    return Documents(
        task=task,
        prompts=tuple(item["prompt"] for item in found),
        references=tuple(item["reference"] for item in found),
        new_tokens=settings["generation_kwargs"]["max_gen_toks"],
    )


class ReferenceLoop:
    """One text at a time."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        from transformers import GenerationConfig

        self.model, self.tokenizer = model, tokenizer
        # Its models come without surprises in their generation_config; so must ours here.
        self.model.generation_config = GenerationConfig(
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )

    def run(self, metric: str, asked: Documents) -> list[float]:
        """Returns ROUGE-L of each response, or Min-40% of each forget and holdout text by turns."""
        if metric == "privleak":
            found = {split: [self._min_40(text) for text in texts] for split, texts in asked.splits}
            return [value for pair in zip(found["forget"], found["holdout"], strict=True) for value in pair]
        scores = []
        for prompt, reference in zip(asked.prompts, asked.references, strict=True):
            ids = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=True).input_ids
            with torch.no_grad():
                found = self.model.generate(
                    ids.to(self.model.device), max_new_tokens=asked.new_tokens, do_sample=False,
                    attention_mask=torch.ones_like(ids).to(self.model.device),
                    pad_token_id=self.tokenizer.pad_token_id,
                )  # fmt: skip
            text = self.tokenizer.batch_decode(found[:, ids.shape[1] :], skip_special_tokens=True)[0]
            scores.append(
                formulas.rouge(reference, text if metric == "verbmem_f" else formulas.cut_answer(text)).rouge_l
            )
        return scores

    def _min_40(self, text: str) -> float:
        logprobs = self._logprobs(text)
        self._logprobs(text.lower())
        value = formulas.min_k(logprobs, 40)
        assert value is not None
        return value

    def _logprobs(self, text: str) -> list[float]:
        ids = torch.tensor(self.tokenizer.encode(text))[None].to(self.model.device)
        with torch.no_grad():
            logits = self.model(ids, labels=ids)[1]
        table = torch.nn.functional.log_softmax(logits, dim=-1)
        return [table[0, place, token].item() for place, token in enumerate(ids[0][1:])]


class StockLmEval:
    """lm-eval's own model class."""

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int) -> None:
        from lm_eval.models.huggingface import HFLM

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        with contextlib.redirect_stderr(io.StringIO()):
            self.lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)

    def run(self, metric: str, asked: Documents) -> list[float]:
        """Returns ROUGE-L of each response, or the summed log-likelihood of each forget and holdout text by turns."""
        if metric == "privleak":
            texts = dict(asked.splits)
            turns = [text for pair in zip(texts["forget"], texts["holdout"], strict=True) for text in pair]
            requests = [SimpleNamespace(args=(text,)) for text in turns]
            return [float(value) for value in self.lm.loglikelihood_rolling(requests, disable_tqdm=True)]
        settings = dict(catalogue.task_settings(asked.task)["generation_kwargs"])
        requests = [SimpleNamespace(args=(prompt, dict(settings))) for prompt in asked.prompts]
        responses = self.lm.generate_until(requests, disable_tqdm=True)
        return [
            formulas.rouge(reference, text if metric == "verbmem_f" else formulas.cut_answer(text)).rouge_l
            for reference, text in zip(asked.references, responses, strict=True)
        ]


class Quench:
    """The whole of what a cell costs after loading: lm-eval, every secondary metric and the records included."""

    def __init__(self, model: Any, tokenizer: Any, data_dir: Path | None) -> None:
        self.model, self.tokenizer, self.data_dir = model, tokenizer, data_dir

    def run(self, metric: str, asked: Documents) -> list[float]:
        """Returns ROUGE-L of each response, or Min-40% of each forget and holdout text by turns."""
        count = 2 * len(asked.splits[0][1]) if metric == "privleak" else len(asked.prompts)
        found = evaluate(
            self.model, self.tokenizer, asked.task, data_dir=self.data_dir, device=str(self.model.device),
            limit=count, seed=0,
        )  # fmt: skip
        self.last = found
        key = "min_k_40" if metric == "privleak" else metric
        return [document.scores[key] for document in found.documents]


def agreement(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Returns the largest difference between two contenders' scores of the same documents."""
    return max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
