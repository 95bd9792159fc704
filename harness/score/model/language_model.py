"""lm-eval's Hugging Face model with what MUSE needs: fast greedy text and per-token log-probabilities.

``QuenchLM`` (made on first use, since lm-eval must not be imported together
with this module) answers the same requests as lm-eval's ``HFLM``, and one
more: ``token_logprobs``. Its greedy tokens are those of a plain one-by-one
loop in float32; it reads nothing from a submission's ``generation_config``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from harness.errors import ScoringError
from harness.score.model.batching import CACHED_TOKENS, CPU_TOKENS, DEFAULT_TOKENS, Batches
from harness.score.model.generation import GreedyGenerator
from harness.score.model.log_probs import Scorer, TokenLogProbs
from harness.score.model.logits import LogitSource
from harness.score.model.threads import lanes_of, side_by_side
from harness.tokenizer import check_ids, named_tokenizer

Progress = Callable[[int, int], None]

_SINGLE_BYTES = tuple(f"<0x{number:02X}>" for number in range(256))
_NOTHING = TokenLogProbs(logprobs=[], means=[], stds=[], correct=[])


class TextScorer:
    """Texts in, token statistics out: tokenization, BOS and length limits around a ``Scorer``.

    A tokenizer that puts BOS before a text gets it as context of the first
    token. Without one the first token is context itself: it has no
    log-probability and is not counted.

    Attributes:
        bos: Tokens before every text: ``[bos]`` or none.
        shortened: Texts that were cut to the model's context so far.
    """

    def __init__(self, source: LogitSource, tokenizer: Any, *, max_length: int, batches: Batches) -> None:
        self._tokenizer, self._max_length, self._batches = tokenizer, max_length, batches
        self._vocabulary = source.vocabulary
        self._score, self._lanes = Scorer(source), lanes_of(source)
        self._known: dict[tuple[str, str], TokenLogProbs] = {}
        begin = tokenizer.bos_token_id
        self.bos = [begin] if begin is not None and tokenizer("a")["input_ids"][:1] == [begin] else []
        self.shortened = 0

    def score_texts(self, texts: Sequence[str], on_progress: Progress | None = None) -> list[TokenLogProbs]:
        """Returns the statistics of every token of each text; of its beginning where it is too long."""
        sequences = [self.bos + ids for ids in self._encode(texts)]
        self.shortened += sum(len(sequence) > self._max_length for sequence in sequences)
        return self._run([(sequence[: self._max_length], 1) for sequence in sequences], on_progress)

    def score_continuations(self, pairs: Sequence[tuple[str, str]]) -> list[TokenLogProbs]:
        """Returns the statistics of the second text's tokens where it follows the first.

        Both are tokenized together, as the model would read them; what counts
        begins at the first token that the prompt alone does not have. Too long
        a pair loses its beginning. Pairs that were drafts are known already.
        """
        asked = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        jobs = []
        for sequence, first in self.tokens_of(asked):
            surplus = max(0, len(sequence) - self._max_length)
            self.shortened += surplus > 0
            jobs.append((sequence[surplus:], max(1, first - surplus)))
        found = dict(zip(asked, self._run(jobs, None), strict=True))
        return [self._known[pair] if pair in self._known else found[pair] for pair in pairs]

    def tokens_of(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], int]]:
        """Returns the tokens of each prompt with what follows it, and the place of the first that the prompt lacks."""
        found = []
        wholes = self._encode([prompt + text for prompt, text in pairs])
        prompts = self._encode([prompt for prompt, _ in pairs])
        for whole, alone in zip(wholes, prompts, strict=True):
            same = 0
            while same < min(len(whole), len(alone)) and whole[same] == alone[same]:
                same += 1
            found.append((self.bos + whole, len(self.bos) + same))
        return found

    def remember(self, prompt: str, text: str, judged: TokenLogProbs) -> None:
        """Keeps what a generation has found out about a continuation on its way."""
        self._known[prompt, text] = judged

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.ids(texts, add_special_tokens=False) if texts else []

    def ids(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Returns the token ids of each text, refused where the model's embedding has no row for one."""
        encoded = self._tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"]
        check_ids(encoded, self._tokenizer, self._vocabulary)
        return [list(ids) for ids in encoded]

    def _run(self, jobs: Sequence[tuple[list[int], int]], on_progress: Progress | None) -> list[TokenLogProbs]:
        scored = [row for row, (sequence, first) in enumerate(jobs) if len(sequence) > first]

        def work(rows: Sequence[int]) -> list[TokenLogProbs]:
            picked = [jobs[scored[row]] for row in rows]
            return self._score([sequence for sequence, _ in picked], [first for _, first in picked])

        def share(rows: list[int]) -> list[TokenLogProbs]:
            return side_by_side(work, rows, self._lanes)

        found = self._batches.run([len(jobs[row][0]) for row in scored], share, on_progress)
        results = [_NOTHING] * len(jobs)
        for row, result in zip(scored, found, strict=True):
            results[row] = result
        return results


class StopStrings:
    """Tells which rows have written one of some strings.

    Only the last few tokens are decoded at every step; a find there is
    confirmed on the whole row, since a token may read differently at the
    beginning of a text, less the bytes that it ends with: where single bytes
    stand for rare characters, a later byte that completes none of them makes
    all bytes of the run unreadable, and the string is gone again.
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        self._decode = tokenizer.batch_decode
        self._strings = tuple(strings)
        known = tokenizer.get_vocab()
        single = {known[token] for token in _SINGLE_BYTES if token in known}
        # Special tokens are left out of the text: bytes on both sides of one stand together.
        self._unsettled = single | set(tokenizer.all_special_ids) if single else single
        self._window = 2 + max(len(tokenizer(s, add_special_tokens=False)["input_ids"]) for s in strings)

    def __call__(self, rows: list[list[int]]) -> list[bool]:
        """Returns for every row of new tokens whether a stop string is in its text."""
        tails = self._decode([row[-self._window :] for row in rows], skip_special_tokens=True)
        return [self._found(tail) and self._found(self._decode([self._settled(row)], skip_special_tokens=True)[0])
                for tail, row in zip(tails, rows, strict=True)]  # fmt: skip

    def _settled(self, row: list[int]) -> list[int]:
        """Returns the tokens whose text no later token can change."""
        end = len(row)
        while end and row[end - 1] in self._unsettled:
            end -= 1
        return row[:end]

    def _found(self, text: str) -> bool:
        return any(string in text for string in self._strings)


def _reset_generation_config(model: Any, tokenizer: Any) -> None:
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )


@cache
def _quench_lm() -> type[Any]:
    from lm_eval.models.huggingface import HFLM

    class QuenchLM(HFLM):  # type: ignore[misc]
        """HFLM with batched exact greedy generation and per-token log-probabilities.

        Args:
            pretrained: A model object, or the folder of one.
            tokenizer: A tokenizer object or its folder.
            batch_size: Most texts per batch; None or ``auto`` lets the token
                budget decide.
            on_progress: Told how many requests of how many are done.
            **kwargs: Further arguments of HFLM.
        """

        def __init__(
            self, pretrained: Any, tokenizer: Any = None, *, batch_size: int | str | None = None,
            on_progress: Progress | None = None, **kwargs: Any,
        ) -> None:  # fmt: skip
            rows = None if batch_size is None or str(batch_size).startswith("auto") else int(batch_size)
            named = pretrained if tokenizer is None else tokenizer
            if isinstance(named, str):
                tokenizer = named_tokenizer(named, kwargs.get("revision"))
            super().__init__(pretrained=pretrained, tokenizer=tokenizer, batch_size=rows or 1, **kwargs)
            _reset_generation_config(self.model, self.tokenizer)
            self.on_progress = on_progress
            end = self.tokenizer.eos_token_id
            on_cpu = self.device.type == "cpu"
            forward = Batches(max_rows=rows, tokens=CACHED_TOKENS if on_cpu else DEFAULT_TOKENS)
            together = Batches(max_rows=rows, tokens=CPU_TOKENS if on_cpu else DEFAULT_TOKENS)
            source = LogitSource(self.model)
            lanes = Batches(max_rows=rows, tokens=forward.tokens * lanes_of(source))
            self.texts = TextScorer(source, self.tokenizer, max_length=self.max_length, batches=lanes)
            self._generate = GreedyGenerator(
                source,
                end_ids=[] if end is None else [end],
                batches=together,
                prompt_tokens=forward.tokens,
            )
            self.shortened_prompts = 0

        def token_logprobs(self, requests: list[Any]) -> list[dict[str, list[float]]]:
            """Returns ``logprobs``, ``means`` and ``stds`` of every token of each request's text."""
            found = self.texts.score_texts([request.args[0] for request in requests], self.on_progress)
            return [{"logprobs": one.logprobs, "means": one.means, "stds": one.stds} for one in found]

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            """Returns the greedy continuation of every request's prompt, cut at its stop strings."""
            # Recurrent models keep no keys and values, and sampling is none of our metrics: lm-eval's own loop.
            if getattr(self.model, "_is_stateful", False) or any(r.args[1].get("do_sample") for r in requests):
                return list(super().generate_until(requests, disable_tqdm=disable_tqdm))
            groups: dict[tuple[tuple[str, ...], int], list[int]] = {}
            for index, request in enumerate(requests):
                groups.setdefault(self._stop_and_length(request.args[1]), []).append(index)
            answers: dict[int, str] = {}
            for (until, length), indices in groups.items():
                texts = self._continuations([requests[index] for index in indices], until, length)
                answers.update(zip(indices, texts, strict=True))
            return [answers[index] for index in range(len(requests))]

        def _stop_and_length(self, settings: dict[str, Any]) -> tuple[tuple[str, ...], int]:
            until = settings.get("until") or []
            return (until,) if isinstance(until, str) else tuple(until), int(settings["max_gen_toks"])

        def _continuations(self, requests: list[Any], until: tuple[str, ...], length: int) -> list[str]:
            room = self.max_length - length
            if room < 1:
                raise ScoringError(
                    f"The model's context of {self.max_length} tokens leaves no room for a prompt before {length} new"
                    " tokens: score a model with a longer context."
                )
            prompts = [request.args[0] for request in requests]
            encoded = self.texts.ids(prompts)
            self.shortened_prompts += sum(len(ids) > room for ids in encoded)
            ending = until[0] if until else ""
            drafts = self._drafts(requests, encoded, ending)

            def remember(row: int, judged: TokenLogProbs) -> None:
                if drafts[row] and not ending:
                    self.texts.remember(prompts[row], requests[row].doc["reference"], judged)

            new = self._generate(
                [ids[-room:] for ids in encoded],
                max_new_tokens=length,
                drafts=drafts,
                is_stopped=StopStrings(self.tokenizer, until) if until else None,
                on_draft=remember,
                on_progress=self.on_progress,
            )
            texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
            for string in until:
                texts = [text.split(string, 1)[0] for text in texts]
            return list(texts)

        def _drafts(self, requests: list[Any], prompts: list[list[int]], ending: str) -> list[list[int]]:
            """Returns the tokens of each reference and ending; none where the prompt reads differently before it."""
            drafts: list[list[int]] = [[] for _ in requests]
            documents = [getattr(request, "doc", None) or {} for request in requests]
            known = [row for row, document in enumerate(documents) if isinstance(document.get("reference"), str)]
            found = self.texts.tokens_of(
                [(requests[row].args[0], documents[row]["reference"] + ending) for row in known]
            )
            for row, (whole, first) in zip(known, found, strict=True):
                if whole[:first] == prompts[row] and len(whole) <= self.max_length:
                    drafts[row] = whole[first:]
            return drafts

    return QuenchLM


def __getattr__(name: str) -> Any:
    # lm-eval's registry and callers find the class here without lm-eval being imported with this module.
    if name == "QuenchLM":
        return _quench_lm()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
