"""Scoring on a CUDA card: the same numbers, how much faster, how near the floor, how much memory.

Random Llamas of 1B and 7B shape, documents of NEWS's lengths made of random
tokens; no weights and no data are needed. Without a card it says so and ends.
Run it with ``make gpu-check``; figures belong in docs/performance.md with date and card.

- Parity in float32: our tokens and log-probabilities against one text at a time.
- Ratios in bfloat16: ours, stock lm-eval, one text at a time.
- Floor: FLOPs of the forward passes that must be, over the card's measured
  bfloat16 matmul rate.
- Quantizing: seconds a billion weights, proof included, on two layers of the 7B shape.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import StockLmEval
from benchmarks.working_memory import peak_bytes, weight_bytes
from harness import quantize
from harness.errors import QuantizationError
from harness.paths import content_dir
from harness.records import Checkpoint
from harness.score.model.language_model import QuenchLM

VOCABULARY = 32_000
SHAPES: dict[str, dict[str, int]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}


@dataclass(frozen=True)
class Work:
    """Documents as text: continuations asked for, and texts to be scored."""

    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    new_tokens: int = 128


def main() -> None:
    """Runs the check, or says that there is no card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quantizers", nargs="*", default=["rtn-4bit-g128", "bnb-nf4", "bnb-int8", "hqq-4bit-g64"])
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here, so nothing was measured: run this where torch.cuda.is_available().")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    tokenizer = wide_tokenizer()
    for name in asked.shapes:
        if name == "1B":
            check_parity(random_llama(SHAPES[name], "cuda", torch.float32), tokenizer, make_work(tokenizer, 4, 300))
        model = random_llama(SHAPES[name], "cuda", torch.bfloat16)
        measure(name, model, tokenizer, make_work(tokenizer, asked.documents, 1_000), asked.rounds)
        del model
        torch.cuda.empty_cache()
    measure_quantizing(SHAPES["7B"] | {"num_hidden_layers": 2}, tokenizer, asked.quantizers, "cuda")


def measure_quantizing(shape: dict[str, int], tokenizer: Any, names: Sequence[str], device: str) -> None:
    """Prints what each quantizer takes for a random model on the device, read from disk and proof included."""
    with tempfile.TemporaryDirectory() as folder:
        random_llama(shape, "cpu", torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        checkpoint = Checkpoint(
            path=folder, tokenizer_path=folder, dtype="bfloat16", sha256="random", merged_from_adapter=False
        )
        for name in names:
            spec = quantize.resolve(name)
            backend = quantize.backend_of(spec)
            if reason := backend.unavailable_reason(spec, device):
                print(f"{name}: {reason}")
                continue
            start = time.perf_counter()
            try:
                made = backend.quantize(checkpoint, spec, device=device)
            except QuantizationError as error:
                print(f"{name}: {error}")
                continue
            seconds = time.perf_counter() - start
            proof = made.proof
            assert proof is not None
            weights = 8 * proof.size_bytes / proof.bits_per_weight
            print(
                f"{name}: {seconds:.1f} s, {seconds / weights * 1e9:.1f} s a billion weights, "
                f"{proof.bits_per_weight:.3f} bits a weight"
            )
            del made


def wide_tokenizer() -> Any:
    """Returns the miniature's tokenizer with words added until every token of the vocabulary has a text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(content_dir("submissions") / "mini-target-plain" / "weights")
    tokenizer.add_tokens([f"<word {number}>" for number in range(VOCABULARY - len(tokenizer))])
    return tokenizer


def random_llama(shape: dict[str, int], device: str, dtype: Any) -> Any:
    """Returns a Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2,
                         pad_token_id=0, **shape)  # fmt: skip
    with torch.device(device):
        return LlamaForCausalLM(config).to(dtype).eval()


def make_work(tokenizer: Any, count: int, tokens: int, *, new_tokens: int = 128) -> Work:
    """Returns random documents of about ``tokens`` tokens for continuations and twice as many to be scored."""
    rng = random.Random(0)

    def text(length: int) -> str:
        return str(tokenizer.decode([rng.randrange(3, 1_000) for _ in range(length)]))

    spread = range(count)
    return Work(
        prompts=tuple(text(tokens - 4 * index) for index in spread),
        texts=tuple(text(2 * tokens - 8 * index) for index in spread),
        new_tokens=new_tokens,
    )


def ours(model: Any, tokenizer: Any, work: Work) -> tuple[list[str], list[list[float]]]:
    """Returns Quench's continuations and log-probabilities."""
    lm = QuenchLM(model, tokenizer)
    settings = {"until": [], "max_gen_toks": work.new_tokens, "do_sample": False}
    responses = lm.generate_until([SimpleNamespace(args=(prompt, settings)) for prompt in work.prompts])
    found = lm.token_logprobs([SimpleNamespace(args=(text,)) for text in work.texts])
    return responses, [one["logprobs"] for one in found]


def one_by_one(model: Any, tokenizer: Any, work: Work) -> tuple[list[str], list[list[float]]]:
    """Returns the same, one text at a time and with a whole table of log-probabilities."""
    responses, scores = [], []
    with torch.inference_mode():
        for prompt in work.prompts:
            ids = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)
            new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=work.new_tokens,
                                 do_sample=False, pad_token_id=0)[0, ids.shape[1] :]  # fmt: skip
            responses.append(tokenizer.decode(new, skip_special_tokens=True))
        for text in work.texts:
            ids = tokenizer(text, return_tensors="pt").input_ids.to(model.device)
            table = torch.log_softmax(model(ids).logits[0, :-1].float(), dim=-1)
            scores.append(table.gather(1, ids[0, 1:, None])[:, 0].tolist())
    return responses, scores


def stock(model: Any, tokenizer: Any, work: Work, batch_size: int) -> None:
    """Has lm-eval's own model class do the same work."""
    lm = StockLmEval(model, tokenizer, batch_size=batch_size).lm
    settings = {"until": [], "max_gen_toks": work.new_tokens, "do_sample": False}
    lm.generate_until([SimpleNamespace(args=(prompt, dict(settings))) for prompt in work.prompts], disable_tqdm=True)
    lm.loglikelihood_rolling([SimpleNamespace(args=(text,)) for text in work.texts], disable_tqdm=True)


def check_parity(model: Any, tokenizer: Any, work: Work) -> tuple[int, float]:
    """Prints and returns how many continuations differ, and the largest difference of a log-probability."""
    (mine, my_scores), (theirs, their_scores) = ours(model, tokenizer, work), one_by_one(model, tokenizer, work)
    differ = sum(one != other for one, other in zip(mine, theirs, strict=True))
    gap = max(
        abs(a - b) for one, other in zip(my_scores, their_scores, strict=True) for a, b in zip(one, other, strict=True)
    )
    print(f"float32: {differ} of {len(mine)} continuations differ; log-probabilities differ by at most {gap:.1e}")
    return differ, gap


def measure(name: str, model: Any, tokenizer: Any, work: Work, rounds: int) -> None:
    """Prints seconds, ratios, the distance to the floor, and peak memory."""
    contenders: dict[str, Callable[[], object]] = {
        "quench": lambda: ours(model, tokenizer, work),
        "stock lm-eval, batch 8": lambda: stock(model, tokenizer, work, 8),
        "stock lm-eval, batch 32": lambda: stock(model, tokenizer, work, 32),
        "one text at a time": lambda: one_by_one(model, tokenizer, work),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    memory = {name: peak_bytes(run) / weight_bytes(model) for name, run in contenders.items()}
    for _ in range(rounds):
        for contender, run in contenders.items():
            seconds[contender].append(timed(run))
    rate = matmul_rate(str(model.device), model.dtype)
    floor = prompt_flops(model, tokenizer, work) / rate
    best = statistics.median(seconds["quench"])
    table = Table(title=f"{name}, {len(work.prompts)} continuations and {len(work.texts)} texts, {model.dtype}")
    for column in ("contender", "median s", "over quench", "over the floor", "memory beside weights"):
        table.add_column(column)
    for contender, values in seconds.items():
        median = statistics.median(values)
        table.add_row(contender, f"{median:.2f}", f"{median / best:.2f}x", f"{median / floor:.1f}x",
                      f"+{100 * memory[contender]:.0f}%")  # fmt: skip
    Console(width=120).print(table)
    print(f"floor {floor:.2f} s: forward passes over prompts and texts at {rate / 1e12:.0f} TFLOP/s measured")


def timed(run: Callable[[], object]) -> float:
    """Returns the seconds that a piece of work takes, the device's queue emptied before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matmul_rate(device: str, dtype: Any) -> float:
    """Returns the FLOP/s of square matrix products, the best of six."""
    size = 8_192 if device.startswith("cuda") else 512
    one = torch.randn(size, size, device=device).to(dtype)
    return max(2 * size**3 / timed(lambda: one @ one) for _ in range(6))


def prompt_flops(model: Any, tokenizer: Any, work: Work) -> float:
    """Returns the FLOPs of one forward pass over every prompt and text: 2 per weight and token, and attention."""
    weights = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name)
    config = model.config
    lengths = [len(tokenizer(text)["input_ids"]) for text in (*work.prompts, *work.texts)]
    attention = sum(2 * config.num_hidden_layers * config.hidden_size * n * n for n in lengths)
    return 2.0 * weights * sum(lengths) + attention


if __name__ == "__main__":
    main()
