"""The natural reversion on a real model: SmolLM2-135M learns beginnings of NEWS articles and is made to forget them.

Target and retrain control are fine-tuned by Quench's own trainer; GA+GDR then
unlearns with all parameters in float32, with all parameters rounded to
bfloat16 after each step (42 steps and 80), and with LoRA, for two seeds each;
``quench run`` scores everything under every quantizer of the main environment
as corpus ``smol``. Each part is kept where it is finished, so the script goes
on where it was cut off. Run it with ``make real-experiment DATA_DIR=...``,
where DATA_DIR holds MUSE NEWS in its local form; ``--store`` names the store.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.real_check import PACKAGE, extract_target, quench
from harness.unlearn.submission_folder import MANIFEST, WEIGHTS, write_submission

QUANTIZERS = ("reference,rtn-8bit-g64,bnb-int8,bnb-nf4,bnb-fp4,rtn-4bit-g64,rtn-4bit-row,hqq-4bit-g64,"
              "quanto-int4-g128,torchao-int4-g64,gguf-q4_0,rtn-3bit-g64")  # fmt: skip
TARGET, RETRAIN = "smol-target", "smol-retrain"
TOKENS, PROMPT, TEXTS = 256, 128, 16
QUESTIONS = Path(__file__).with_name("number_questions.json")
"""What the pretrained model answers rightly and should answer afterwards.

All answers are numbers: MUSE's prompt ends in a space, after which this model's
tokenizer knows no word, but every digit.
"""
SHOWN = 5
"""The first of them are shown before every question and not asked."""
EPOCHS, RATE, BATCH = 12, 1e-4, 4
NOTES = f"SmolLM2-135M-Instruct of the package {PACKAGE} (Apache-2.0); weights and texts are not shipped."


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One way of unlearning: its settings, and ``lora`` where adapters are trained."""

    name: str
    settings: tuple[str, ...]
    lora: str | None = None


# A window is one text, as the target was trained. An end token after it, which the target never saw there, would
# have taken most of the gradient: it is the one token that is not known by heart.
_COMMON = ("batch_size=4", f"window={TOKENS}", "text_end=none", "epochs=20", "retain_weight=1")
ENTRIES = (
    # 42 float32 steps destroy the model (a loss of 40 on the forget texts); 15 make it forget as much as the adapter.
    Entry(name="smol-full-float32", settings=(*_COMMON, "learning_rate=5e-5", "max_steps=15")),
    Entry(name="smol-full-bf16",
          settings=(*_COMMON, "learning_rate=5e-5", "max_steps=42", "update_precision=bfloat16")),
    # 42 steps leave most of the text; these are what it takes to forget about as much at 16 bit as the others have.
    Entry(name="smol-full-bf16-long",
          settings=(*_COMMON, "learning_rate=5e-5", "max_steps=80", "update_precision=bfloat16")),
    Entry(name="smol-lora", settings=(*_COMMON, "learning_rate=5e-4", "max_steps=15"), lora="r=16,alpha=32"),
)  # fmt: skip


def main() -> None:
    """Runs what is not finished yet; the exit code is that of the first step that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="MUSE NEWS in its local form")
    parser.add_argument("--work", type=Path, default=Path("build/smol"), help="folder for weights, texts and logs")
    parser.add_argument("--store", type=Path, help="store of the results [default: WORK/smol.duckdb]")
    parser.add_argument("--base", type=Path, help="folder of another base model, with its tokenizer")
    parser.add_argument("--seeds", default="0,1", help="seeds of unlearning")
    parser.add_argument("--quantizers", default=QUANTIZERS)
    parser.add_argument("--device", default="cpu", help="torch device: cpu or cuda")
    parser.add_argument("--workers", default="1", help="trainings and scoring jobs at a time")
    parser.add_argument("--steps", type=int, default=0, help="stop every training early, to try the script")
    parser.add_argument("--limit", type=int, help="documents per task, to try the script")
    arguments = parser.parse_args()
    if not arguments.data_dir.is_dir():
        sys.exit(f"There is no folder {arguments.data_dir}: name one that holds MUSE NEWS with DATA_DIR=...")
    work = arguments.work
    base = arguments.base
    if base is None:
        extract_target(work, work / "base")
        base = work / "base" / WEIGHTS
    data, submissions = work / "data", work / "submissions"
    write_texts(arguments.data_dir, data, base)
    for name, splits in ((TARGET, ("forget", "retain1")), (RETRAIN, ("retain1",))):
        fine_tune(name, splits, base, data, submissions, device=arguments.device, steps=arguments.steps)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    with ThreadPoolExecutor(int(arguments.workers)) as pool:
        made = [
            pool.submit(unlearn, entry, seed, seeds[0], data, submissions, arguments.device, steps=arguments.steps)
            for entry in ENTRIES
            for seed in seeds
        ]
    for one in made:
        one.result()
    store = str(arguments.store or work / "smol.duckdb")
    # PrivLeak is relative to the retrain control's whole cell, which a limited run does not make.
    limited = ("--limit", str(arguments.limit), "--tasks", "muse_smol_verbmem_f") if arguments.limit else ()
    quench("run", "--submissions", str(submissions), "--corpus", "smol", "--data-dir", str(data), "--quantizers",
           arguments.quantizers, "--device", arguments.device, "--workers", arguments.workers, "--store", store,
           *limited)  # fmt: skip
    quench("show", "--cells", "--corpus", "smol", "--store", store)


def write_texts(news: Path, data: Path, tokenizer_folder: Path) -> None:
    """Writes the corpus in MUSE's local form: beginnings of articles, cut in tokens of the model."""
    from transformers import AutoTokenizer

    if (data / "done").exists():
        return
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    forget = _beginnings(_strings(news, "raw/forget"), tokenizer)
    retain = _beginnings(_strings(news, "privleak/retain"), tokenizer)
    holdout = _beginnings(_strings(news, "privleak/holdout"), tokenizer)
    items = []
    for text in forget:
        tokens = tokenizer(text)["input_ids"]
        halves = (tokens[:PROMPT], tokens[PROMPT:])
        prompt, truth = (tokenizer.decode(half, skip_special_tokens=True) for half in halves)
        items.append({"prompt": prompt, "gt": truth})
    pairs = [
        {"question": question, "answer": answer}
        for question, answer in json.loads(QUESTIONS.read_text(encoding="utf-8"))
    ]
    files: dict[str, Sequence[Any]] = {
        "raw/forget": forget, "raw/retain1": retain, "raw/holdout": holdout, "verbmem/forget": items,
        "privleak/forget": forget, "privleak/retain": retain, "privleak/holdout": holdout,
        "knowmem/retain_qa": pairs[SHOWN:], "knowmem/retain_qa_icl": pairs[:SHOWN],
    }  # fmt: skip
    for name, values in files.items():
        path = data / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    (data / "done").touch()


def _strings(folder: Path, name: str) -> list[str]:
    return [str(text) for text in json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))]


def _beginnings(texts: Sequence[str], tokenizer: Any) -> list[str]:
    """Returns the first tokens, as text, of the first texts that are long enough."""
    found: list[str] = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=TOKENS)["input_ids"]
        if len(tokens) == TOKENS and len(found) < TEXTS:
            found.append(tokenizer.decode(tokens, skip_special_tokens=True))
    if len(found) < 2:
        sys.exit(f"Fewer than two texts have {TOKENS} tokens: give MUSE NEWS whole.")
    return found


def fine_tune(
    name: str, splits: Sequence[str], base: Path, data: Path, submissions: Path, *, device: str = "cpu", steps: int = 0
) -> None:  # fmt: skip
    """Writes a control: the base fine-tuned in float32 on the splits' texts, stored in bfloat16; once."""
    folder = submissions / name
    if (folder / MANIFEST).exists():
        return
    import torch
    from transformers import AutoTokenizer

    from harness.unlearn import losses
    from harness.unlearn.planned_training import OptimizerSettings, train
    from harness.unlearn.weight_files import load_dense, write_model
    from harness.unlearn.windows import pair_batches, text_windows

    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = [text for split in splits for text in _strings(data, f"raw/{split}")]
    windows = [window for text in texts for window in text_windows([text], tokenizer, TOKENS)]
    length = max(len(window["input_ids"]) for window in windows)
    windows = [window for window in windows if len(window["input_ids"]) == length]
    batches = pair_batches(windows, [], batch_size=BATCH, epochs=EPOCHS, max_steps=steps, seed=0)
    model, _ = load_dense(base, device)

    def loss(model: Any, batch: Any) -> dict[str, Any]:
        logits = model(input_ids=batch["forget_input_ids"], attention_mask=batch["forget_attention_mask"]).logits
        return {"loss": losses.nll(logits, batch["forget_labels"])}

    print(f"{name}: {len(batches)} steps", flush=True)
    log = train(model, batches, loss, OptimizerSettings(learning_rate=RATE), seed=0, device=device)
    write_model(model.to("cpu", torch.bfloat16), tokenizer, folder / WEIGHTS)
    write_submission(
        folder, title=f"SmolLM2 {name.removeprefix('smol-')}", method="none", corpus="smol", kind="full_model",
        role="target" if name == TARGET else "retrain", license="Apache-2.0", notes=NOTES,
        hyperparameters={"trained_on": [f"raw/{split}" for split in splits], "epochs": EPOCHS, "learning_rate": RATE,
                         "batch_size": BATCH, "update_precision": "float32", "steps": len(log), "seed": 0,
                         "last_loss": log[-1].losses["loss"]},
    )  # fmt: skip


def unlearn(
    entry: Entry, seed: int, first: int, data: Path, submissions: Path, device: str = "cpu", *, steps: int = 0
) -> None:  # fmt: skip
    """Unlearns the target one way by ``quench unlearn``, once; further seeds say which entry they repeat."""
    folder = submissions / f"{entry.name}-s{seed}"
    if (folder / MANIFEST).exists():
        return
    settings = [*entry.settings, "checkpoint_every=10"]
    if steps:
        settings = [*(one for one in settings if not one.startswith("max_steps")), f"max_steps={steps}"]
    quench("unlearn", "ga_gdr", "--target", TARGET, "--submissions", str(submissions), "--data-dir", str(data),
           "--device", device, "--seed", str(seed), *(("--lora", entry.lora) if entry.lora else ("--full",)),
           *(part for setting in settings for part in ("--set", setting)), "--out", str(folder))  # fmt: skip
    if seed != first:
        with (folder / MANIFEST).open("a", encoding="utf-8") as file:
            file.write(f"seed_of: {entry.name}-s{first}\n")


if __name__ == "__main__":
    main()
