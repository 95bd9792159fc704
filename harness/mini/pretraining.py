"""The miniature's model and how target and retrain model learn their world."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from harness.mini.tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCABULARY
from harness.mini.world import World, deal_sheets
from harness.unlearn.planned_training import OptimizerSettings, Progress, StepLog, train

TARGET_SPLITS = ("forget", "retain1", "retain2")
RETRAIN_SPLITS = ("retain1", "retain2")
TARGET_EPOCHS = 32
RETRAIN_EPOCHS = 40
BRIEF_EPOCHS = 3
"""A brief article is seen in this many epochs: seen in all of them, membership inference would saturate."""
WINDOW = 256
WINDOWS_PER_STEP = 2
SETTINGS = OptimizerSettings(
    learning_rate=4e-3, betas=(0.9, 0.98), weight_decay=0.1, warmup_share=0.05, schedule="cosine", max_grad_norm=1.0
)
ARCHITECTURE: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 384,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "pad_token_id": PAD_ID,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
}


def new_model(seed: int) -> Any:
    """Returns an untrained float32 ``LlamaForCausalLM`` of 1.1 M parameters; one seed, one set of weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**ARCHITECTURE)).float()


def epoch_documents(world: World, splits: tuple[str, ...], epoch: int, epochs: int) -> list[str]:
    """Returns the documents of one epoch in training order.

    Articles come every epoch, quiz pairs are dealt into new sheets each time
    (on fixed sheets the model would learn the sheet, not the answer), and each
    brief article comes in ``BRIEF_EPOCHS`` epochs of its own.
    """
    rng = Random(f"muse-mini/{world.seed}/epoch/{epoch}")
    documents: list[str] = []
    for split in splits:
        documents += world.articles(split)
        documents += deal_sheets(rng.sample(world.quiz[split], len(world.quiz[split])))
        for index, brief in enumerate(world.briefs.get(split, ())):
            drawn = Random(f"muse-mini/{world.seed}/seen/{split}/{index}").sample(
                range(epochs), min(BRIEF_EPOCHS, epochs)
            )
            if epoch in drawn:
                documents.append(brief)
    rng.shuffle(documents)
    return documents


def epoch_windows(documents: list[str], tokenizer: Any, phase: int) -> Any:
    """Returns int64 windows [n, 256] of the stream ``<s> document </s> ...``, cut from position ``phase`` on.

    The stream is a ring, so what lies before ``phase`` ends up in the last
    window; what fills no whole window is left out.
    """
    import torch

    encoded = tokenizer(documents)["input_ids"]
    stream = torch.tensor([token for ids in encoded for token in (*ids, EOS_ID)])
    count = len(stream) // WINDOW
    return stream.roll(-phase)[: count * WINDOW].view(count, WINDOW)


def training_batches(world: World, tokenizer: Any, splits: tuple[str, ...], epochs: int) -> list[dict[str, Any]]:
    """Returns the batches of the whole training, two windows each."""
    import torch

    rng = Random(f"muse-mini/{world.seed}/phase")
    windows = torch.cat(
        [
            epoch_windows(epoch_documents(world, splits, epoch, epochs), tokenizer, rng.randrange(WINDOW))
            for epoch in range(epochs)
        ]
    )
    return [{"input_ids": pair} for pair in windows.split(WINDOWS_PER_STEP)]


def next_token_loss(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the mean negative log-likelihood of the windows' tokens."""
    return {"loss": model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss}


def pretrain(world: World, tokenizer: Any, splits: tuple[str, ...], epochs: int, *,
             on_progress: Progress | None = None) -> tuple[Any, tuple[StepLog, ...]]:  # fmt: skip
    """Returns a model trained on ``splits`` in float32 on the CPU, and its log.

    Target and retrain model start from the same weights.
    """
    model = new_model(world.seed)
    batches = training_batches(world, tokenizer, splits, epochs)
    log = train(model, batches, next_token_loss, SETTINGS, seed=world.seed, on_progress=on_progress)
    return model, log
