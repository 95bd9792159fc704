"""Single documents scored by plain means: one prompt at a time, one token at a time, formulas written out."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from harness.verify.weights import NotCheckedError

Items = Sequence[Mapping[str, str]]
Texts = Callable[[str, str], Items]
"""Gives the items of one split, by configuration and split as MUSE names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One document as this check scores it.

    Attributes:
        prompt: The whole prompt, or the text that is scored.
        reference: What the answer is compared with; None for scored texts.
        response: The answer, cut where its task cuts it; empty for scored texts.
        scores: By metric key.
        valid: Whether it counts: a text does with a finite log-probability of each token, enough of them.
    """

    prompt: str
    reference: str | None
    response: str
    scores: Mapping[str, float]
    valid: bool = True


class Tokens:
    """The tokens that a bare ``tokenizer.json`` makes.

    Attributes:
        prefix: What the file puts before each text, such as BOS.
        end: Token that ends an answer; None where the folder names none.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        if not (folder / "tokenizer.json").is_file():
            raise NotCheckedError(f"{folder} has no tokenizer.json, and no other tokenizer file is read here")
        self._file = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._file.no_padding()
        self._file.no_truncation()
        plain, whole = self.of("a", special=False), self.of("a")
        self.prefix = whole[: next(n for n in range(len(whole)) if whole[n : n + len(plain)] == plain)]
        self.end = self._end(folder)

    def of(self, text: str, *, special: bool = True) -> list[int]:
        """Returns a text's tokens, with the special ones that the file adds or without them."""
        return list(self._file.encode(text, add_special_tokens=special).ids)

    def text(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens, special ones left out."""
        return str(self._file.decode(list(tokens), skip_special_tokens=True))

    def _end(self, folder: Path) -> int | None:
        path = folder / "tokenizer_config.json"
        named = json.loads(path.read_text(encoding="utf-8")).get("eos_token") if path.is_file() else None
        token = named.get("content") if isinstance(named, dict) else named
        return None if token is None else self._file.token_to_id(token)


def score(
    model: Any, tokens: Tokens, metric: str, settings: Mapping[str, Any], texts: Texts, number: int
) -> list[Scored]:
    """Returns the first documents of one task as plain means score them.

    Args:
        model: A causal language model of transformers.
        tokens: Its tokenizer.
        metric: ``verbmem_f``, ``knowmem_f``, ``knowmem_r`` or ``privleak``.
        settings: The task's own, with ``dataset_kwargs`` and ``generation_kwargs``.
        texts: Where its texts come from.
        number: How many documents.
    """
    most = getattr(model.config, "max_position_embeddings", None) or 2048
    if metric == "privleak":
        turns = zip_longest(texts("privleak", "forget"), texts("privleak", "holdout"))
        items = [item["text"] for item in chain.from_iterable(turns) if item is not None]
        return [_membership(model, tokens, text, most) for text in items[:number]]
    how = settings["generation_kwargs"]
    until = [how["until"]] if isinstance(how.get("until"), str) else list(how.get("until") or [])
    scored = []
    for prompt, reference in _prompts(tokens, metric, settings["dataset_kwargs"], texts)[:number]:
        room = most - int(how["max_gen_toks"])
        response = _answer(model, tokens, tokens.of(prompt)[-room:], int(how["max_gen_toks"]), until)
        if metric != "verbmem_f":
            response = re.split(r"\n\n|\nQuestion|Question:", response)[0]
        scored.append(
            Scored(prompt=prompt, reference=reference, response=response, scores=_rouge(metric, reference, response))
        )
    return scored


def _prompts(tokens: Tokens, metric: str, how: Mapping[str, Any], texts: Texts) -> list[tuple[str, str]]:
    """Returns prompt and reference of each document."""
    if metric == "verbmem_f":
        return [
            (item["prompt"], tokens.text(tokens.of(item["gt"])[: how["reference_tokens"]]))
            for item in texts("verbmem", "forget")
        ]
    split = how["questions"]
    pairs = [f"Question: {item['question']}\nAnswer: {item['answer']}\n\n" for item in texts("knowmem", f"{split}_icl")]
    shots = "".join(pairs[: how["icl_pairs"]])
    return [
        (f"{shots}Question: {item['question']}\nAnswer: ", item["answer"]) for item in texts("knowmem", split)
    ]  # fmt: skip


def _answer(model: Any, tokens: Tokens, prompt: list[int], most: int, until: Sequence[str]) -> str:
    """Returns the greedy continuation: the most likely token, again and again, with transformers' own cache."""
    import torch

    new: list[int] = []
    given, memory, text = prompt, None, ""
    while len(new) < most and not any(string in text for string in until):
        with torch.no_grad():
            out = model(input_ids=torch.tensor([given]), past_key_values=memory, use_cache=True)
        token = int(out.logits[0, -1].argmax())
        if token == tokens.end:
            break
        new.append(token)
        given, memory, text = [token], out.past_key_values, tokens.text(new)
    for string in until:
        text = text.split(string)[0]
    return text


def _rouge(metric: str, reference: str, response: str) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer

    found = RougeScorer(["rougeL"], use_stemmer=False).score(reference, response)["rougeL"]
    return {metric: float(found.fmeasure), "rougeL_recall": float(found.recall)}


def _membership(model: Any, tokens: Tokens, text: str, most: int) -> Scored:
    """Returns Min-40%: minus the mean log-probability of the 40% of tokens that are the least likely."""
    import torch

    ids = [*tokens.prefix, *tokens.of(text, special=False)][:most]
    with torch.no_grad():
        every = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    likely = sorted(float(every[place - 1, ids[place]]) for place in range(1, len(ids)))
    least = likely[: int(0.4 * len(likely))]
    if not least or not all(map(math.isfinite, likely)):
        return Scored(prompt=text, reference=None, response="", scores={}, valid=False)
    scores = {"min_k_40": -math.fsum(least) / len(least), "loss": -math.fsum(likely) / len(likely),
              "tokens": float(len(likely))}  # fmt: skip
    return Scored(prompt=text, reference=None, response="", scores=scores)


def privleak(forget: Sequence[float], holdout: Sequence[float], reference_auc: float) -> tuple[float, float]:
    """Returns AUC and PrivLeak (in percent) of Min-40% scores, counted pair by pair.

    Source: MUSE (Shi et al., 2024), section 4, equation 5.
    """
    ordered = sorted(holdout)
    below = sum(bisect_left(ordered, seen) + bisect_right(ordered, seen) for seen in forget) / 2
    auc = below / (len(forget) * len(holdout))
    return auc, 100 * (auc - reference_auc) / reference_auc
