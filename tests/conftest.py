"""What tests of several rooms share, made once a run."""

from __future__ import annotations

import gc
import importlib
import shutil
from pathlib import Path

import duckdb
import pytest
import synthetic_board as synthetic

from harness.records import CellResult
from harness.store.store import Store


def pytest_collection_finish(session: pytest.Session) -> None:
    """Takes what the libraries hold out of the garbage collector's sight: a Trainer walks all of it at each end."""
    if len(session.items) > _MANY_TESTS:
        for library in ("torch", "peft", "lm_eval.evaluator", "transformers.trainer", "transformers.models.llama"):
            importlib.import_module(library)
        gc.collect()
        gc.freeze()
        # What tests leave behind is little beside that: it may wait.
        gc.set_threshold(100_000, 50, 50)


ROOT = Path(__file__).parents[1]
_MANY_TESTS = 1_000
BOARD = ("reference", "rtn-8bit-g128", "rtn-4bit-g128", "bnb-fp4", "awq-4bit-g128", "rtn-3bit-g64")
"""Quantizers of the committed store that tests of commands and pages read: each verdict occurs under one of them."""

TEXTS = [
    "The old mill stands by the river. Two children carried baskets to the gate.",
    "Question: Who built the mill?\nAnswer: Velmor Tranth\n\n",
    "At dawn the quiet market was full of ribbons and noise, 1423.",
] * 3


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer Llama in bfloat16 with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from harness.mini.tokenizer import train_tokenizer

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("small-model")
    tokenizer = train_tokenizer(TEXTS)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=128, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def demo_cells() -> list[CellResult]:
    """The cells of the synthetic board."""
    return synthetic.cells(synthetic.demo_plans())


@pytest.fixture(scope="session")
def committed_cells() -> list[CellResult]:
    """Every cell of the committed store, with documents."""
    with Store.open(ROOT / "results.duckdb", read_only=True) as store:
        return store.cells(with_documents=True)


@pytest.fixture(scope="session")
def board_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed store, cut to the miniature's cells under ``BOARD``: only to be read."""
    path = tmp_path_factory.mktemp("board") / "results.duckdb"
    shutil.copy(ROOT / "results.duckdb", path)
    with duckdb.connect(str(path)) as connection:
        other = (
            "SELECT c.id FROM cells c JOIN quantizers q ON q.id = c.quantizer_id "
            "WHERE c.corpus != 'mini' OR NOT list_contains(?, q.name)"
        )
        for table, column in (("scores", "cell_id"), ("document_rows", "cell_id"), ("cells", "id")):
            connection.execute(f"DELETE FROM {table} WHERE {column} IN ({other})", [list(BOARD)])
    return path
