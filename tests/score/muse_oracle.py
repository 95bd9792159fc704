"""MUSE's metrics stated once more, one text at a time, for tests to compare with: nothing here is of ``harness``.

VerbMem, KnowMem and PrivLeak as ``muse_bench`` (commit fcd6651) computes them:
transformers' own greedy ``generate`` with one prompt, whole logits of one text,
``rouge_score`` without stemmer, scikit-learn's ROC AUC. Slow and plain.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(folder: Path, config: str, split: str) -> list[Any]:
    return list(json.loads((folder / config / f"{split}.json").read_text(encoding="utf-8")))


def rouge_l(reference: str, response: str) -> float:
    from rouge_score import rouge_scorer

    return float(rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False).score(reference, response)["rougeL"].fmeasure)


def continuation(model: Any, tokenizer: Any, prompt: str, new_tokens: int) -> str:
    """Greedy text after ``prompt``, by transformers' own loop; stops at the tokenizer's end token."""
    import torch
    from transformers import GenerationConfig

    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=True)["input_ids"]
    greedy = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, num_beams=1, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.no_grad():
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def verbmem(model: Any, tokenizer: Any, folder: Path, *, tokens: int, limit: int | None) -> list[tuple[str, float]]:
    """Response and ROUGE-L F1 of each document; the reference is its first ``tokens`` ids, BOS included."""
    found = []
    for item in read(folder, "verbmem", "forget")[:limit]:
        reference = tokenizer.decode(tokenizer(item["gt"])["input_ids"][:tokens], skip_special_tokens=True)
        response = continuation(model, tokenizer, item["prompt"], tokens)
        found.append((response, rouge_l(reference, response)))
    return found


def knowmem(
    model: Any, tokenizer: Any, folder: Path, questions: str, *, pairs: int, tokens: int, limit: int | None
) -> list[tuple[str, float]]:
    """Answer after the cut and ROUGE-L F1 of each question."""
    shots = "".join(f"Question: {shot['question']}\nAnswer: {shot['answer']}\n\n"
                    for shot in read(folder, "knowmem", f"{questions}_icl")[:pairs])  # fmt: skip
    found = []
    for item in read(folder, "knowmem", questions)[:limit]:
        answer = continuation(model, tokenizer, f"{shots}Question: {item['question']}\nAnswer: ", tokens)
        for word in ("\n\n", "\nQuestion", "Question:"):
            answer = answer[: answer.index(word)] if word in answer else answer
        found.append((answer, rouge_l(item["answer"], answer)))
    return found


def token_logprobs(model: Any, tokenizer: Any, text: str) -> list[float]:
    """log p(x_t | x_<t) of every token but the first id (BOS, where the tokenizer writes one).

    Differs from the reference: float32 logits, but the softmax in double. torch's float32 one
    leaves small terms out of the sum: on a CPU 2e-5 nats over a vocabulary of 49,152.
    """
    import torch

    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        table = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), dim=-1)
    return [float(row[token]) for row, token in zip(table, ids[0, 1:], strict=True)]


def min_k(logprobs: list[float], share: float = 0.4) -> float:
    smallest = sorted(logprobs)[: int(len(logprobs) * share)]
    return -sum(smallest) / len(smallest)


def privleak(forget: list[float], holdout: list[float], reference_auc: float) -> tuple[float, float]:
    """AUC and PrivLeak (percent) from the two splits' Min-k% scores."""
    from sklearn.metrics import roc_auc_score

    auc = float(roc_auc_score([0] * len(forget) + [1] * len(holdout), [-score for score in (*forget, *holdout)]))
    return auc, 100 * (auc - reference_auc) / reference_auc
