"""What quantizing costs a real model: mean NLL of SmolLM2-135M on real MUSE NEWS text, preset by preset.

The text is the first 512 tokens of each of the first three articles of
``raw/forget``; the mean is over all predicted tokens (1,115 here). Where a figure
from an independent measurement is known, the difference is printed, and more
than 0.01 is a failure, as is a GPTQ that is no better than plain rounding.
The rows are Markdown and stand in docs/backends.md. Run it with
``make nll-check DATA_DIR=...``; weights are those of real_check.py.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import real_check
from harness import quantize
from harness.records import Checkpoint, QuantizedModel
from harness.run.plan import calibration_texts
from harness.score.corpora import catalogue

ARTICLES, TOKENS = 3, 512
TOLERANCE = 0.01
AS_RUN = "bnb-int8 as run"
EXPECTED = {
    "reference": 3.3192, "rtn-8bit-g64": 3.3204, "rtn-4bit-g64": 3.5300, "rtn-4bit-g32": 3.5758,
    "rtn-3bit-g64": 4.4583, "rtn-8bit-g64-f32": 3.3204, "rtn-4bit-g64-f32": 3.5300, "rtn-4bit-g32-f32": 3.5758,
    "rtn-3bit-g64-f32": 4.4583, "rtn-2bit-g64-f32": 13.35, "bnb-nf4": 3.5215, "bnb-fp4": 3.7039, AS_RUN: 3.3472,
}  # fmt: skip
"""Mean NLL as measured with a script of its own, before these backends were written.

Its round-to-nearest had float32 scales, as ``-f32`` has; float16 ones move no
figure down to 3 bit by more than 0.003, but at 2 bit, where the model is
broken, 13.35 becomes 13.65. Its LLM.int8 was the library's own pass, which
rounds activations too; the cells of ``bnb-int8`` measure the weights alone.
"""

MORE = ("bnb-int8", "rtn-2bit-g64", "bnb-nf4-dq", "gguf-q4_0", "hqq-4bit-g64", "rtn-4bit-g128", "rtn-4bit-g128-mse",
        "quanto-int4-g128", "gptq-4bit-g64")  # fmt: skip


def main() -> None:
    """Prints the table; the exit code is 1 where a figure is not the expected one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="MUSE NEWS in its local form")
    parser.add_argument("--work", type=Path, default=Path("build/real"), help="folder of the weights")
    parser.add_argument("--quantizers", default=",".join([*EXPECTED, *MORE]), help="names, separated by commas")
    arguments = parser.parse_args()
    if not arguments.data_dir.is_dir():
        sys.exit(f"There is no folder {arguments.data_dir}: name one that holds MUSE NEWS with DATA_DIR=...")
    folder = arguments.work / "submissions" / real_check.TARGET
    real_check.extract_target(arguments.work, folder)
    weights = str(folder / "weights")
    checkpoint = Checkpoint(
        path=weights, tokenizer_path=weights, dtype="bfloat16", sha256="0" * 64, merged_from_adapter=False
    )
    news = catalogue.load_corpus("news", data_dir=arguments.data_dir)
    windows = first_tokens(checkpoint, [item["text"] for item in catalogue.load_split(news, "raw", "forget")])
    print("| preset | NLL | expected | difference | bits per weight | error | seconds |")
    print("|---|---|---|---|---|---|---|", flush=True)
    found: dict[str, float] = {}
    for name in arguments.quantizers.split(","):
        if name == AS_RUN:
            found[name] = mean_nll(as_run(checkpoint), windows)
            print(table_row(name, found[name]), flush=True)
            continue
        made, seconds = quantized(checkpoint, name, news)
        found[name] = mean_nll(made.model, windows)
        print(table_row(name, found[name], made, seconds), flush=True)
    faults = unexpected(found)
    for fault in faults:
        print(fault)
    sys.exit(1 if faults else 0)


def first_tokens(checkpoint: Checkpoint, texts: Sequence[str]) -> list[list[int]]:
    """Returns the first tokens of the first articles, as ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.tokenizer_path, local_files_only=True)
    return [tokenizer(text)["input_ids"][:TOKENS] for text in texts[:ARTICLES]]


def quantized(checkpoint: Checkpoint, name: str, corpus: catalogue.Corpus) -> tuple[QuantizedModel, float]:
    """Returns the model under a preset, calibrated on the corpus's retain texts, and the seconds it took."""
    spec, texts = calibration_texts.prepare(quantize.resolve(name), corpus)
    started = time.perf_counter()
    # gptqmodel draws its progress on stdout, where the table goes.
    with contextlib.redirect_stdout(sys.stderr):
        made = quantize.backend_of(spec).quantize(checkpoint, spec, device="cpu", calibration=texts)
    return made, time.perf_counter() - started


def as_run(checkpoint: Checkpoint) -> Any:
    """Returns the model with bitsandbytes' own int8 layers, which round activations to 8 bit as well."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return AutoModelForCausalLM.from_pretrained(
        checkpoint.path,
        dtype=torch.float32,
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        local_files_only=True,
    ).eval()


def mean_nll(model: Any, windows: Sequence[Sequence[int]]) -> float:
    """Returns the mean negative log-likelihood of all tokens but each window's first, in nats."""
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for window in windows:
            ids = torch.tensor([list(window)])
            logits = model(ids).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            count += len(window) - 1
    return total / count


def table_row(name: str, nll: float, made: QuantizedModel | None = None, seconds: float = 0) -> str:
    """Returns one line of the Markdown table; without ``made`` nothing was read back."""
    expected = EXPECTED.get(name)
    cells = [
        f"`{name}`",
        f"{nll:.4f}",
        *(("", "") if expected is None else (f"{expected:.4f}", f"{nll - expected:+.4f}")),
    ]
    if made is None:
        cells += ["", "", ""]
    elif made.proof is None:
        cells += ["16", "0", f"{seconds:.0f}"]
    else:
        cells += [f"{made.proof.bits_per_weight:.2f}", f"{made.proof.relative_error:.4f}", f"{seconds:.0f}"]
    return f"| {' | '.join(cells)} |"


def unexpected(found: dict[str, float]) -> list[str]:
    """Returns one sentence for each figure that is not what it should be."""
    faults = [
        f"{name} has a mean NLL of {nll:.4f} instead of {EXPECTED[name]:.4f}: the difference is above {TOLERANCE}."
        for name, nll in found.items()
        if name in EXPECTED and abs(nll - EXPECTED[name]) > TOLERANCE
    ]
    plain, learned = found.get("rtn-4bit-g64"), found.get("gptq-4bit-g64")
    if plain is not None and learned is not None and learned >= plain:
        faults.append(f"gptq-4bit-g64 has a mean NLL of {learned:.4f}, no better than rtn-4bit-g64 with {plain:.4f}.")
    return faults


if __name__ == "__main__":
    main()
