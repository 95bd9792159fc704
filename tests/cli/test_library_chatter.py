"""What libraries say of themselves never reaches the screen, in a process as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import harness

ROOT = Path(harness.__file__).parents[1]

CHATTER = """
import logging, sys, warnings
from harness.cli import library_chatter
library_chatter.hush()
warnings.simplefilter("always")
warnings.warn("a warning")
import tqdm, tqdm.auto
import huggingface_hub.utils as hub
from transformers.utils import logging as transformers_logging
for bar in (tqdm.tqdm, tqdm.auto.tqdm, hub.tqdm, transformers_logging.tqdm):
    list(bar(range(3), desc="a bar"))
transformers_logging.get_logger("transformers.some").warning_once("a warning of transformers")
hub.logging.get_logger("huggingface_hub.some").warning("a warning of the hub")
loud = logging.getLogger("some.library")
loud.addHandler(logging.StreamHandler())
loud.setLevel(logging.DEBUG)
loud.warning("a warning of its own handler")
logging.warning("a warning of the root")
logging.captureWarnings(True)
warnings.warn("a captured warning")
with library_chatter.off_stdout():
    print("a banner")
    import os
    os.system("echo a banner of another process")
logging.getLogger("harness.memory").warning("what Quench says")
loud.error("an error")
print("the result")
"""


def fresh(*arguments: str, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    loud = {"PYTHONWARNINGS": "default", "TRANSFORMERS_VERBOSITY": "info", "PYTHONPATH": str(ROOT)}
    env = {**os.environ, **loud, "OMP_NUM_THREADS": "1"} | ({"QUENCH_CACHE": str(cache)} if cache else {})
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env)


def test_bars_warnings_and_banners_are_dropped_and_quench_s_words_and_errors_are_not() -> None:
    done = fresh("-c", CHATTER)
    assert done.stdout == "the result\n", done.stderr
    # The root's warning has given it a handler of its own.
    assert {line.rpartition(":")[2] for line in done.stderr.splitlines()} == {"what Quench says", "an error"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ("survival mini-npo-gdr-lora --quantizers rtn-4bit-g64,bnb-nf4", ()),
        ("relearn mini-npo-gdr-lora --steps 1 --documents 2 --quantizers bnb-nf4 --store {folder}/s.duckdb", ()),
        ("unlearn ga --target mini-target-4bit --lora r=2,alpha=4 --set max_steps=2 --out {folder}/mine",
         ("Wrote ", "quench validate", "run mine")),
        ("run mini-npo-gdr-lora --no-controls --limit 1 --quantizers bnb-nf4 --store {folder}/s.duckdb",
         ("Kernel fence: ", "1/1 mini-npo-gdr-lora x bnb-nf4", "4 finished; 0 done before. ", " ")),
        ("validate submissions/mini-npo-gdr-lora", ()),
        ("plan mini-npo-gdr-lora --store {folder}/s.duckdb", ()),
        ("backends", ()),
    ],
)  # fmt: skip
def test_a_command_in_a_process_of_its_own_shows_its_own_lines_alone(
    tmp_path: Path, arguments: str, lines: tuple[str, ...]
) -> None:
    command = ["-m", "harness.cli.main", *arguments.format(folder=tmp_path).split()]
    done = fresh(*command, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    foreign = [line for line in done.stderr.splitlines() if not line.startswith(("/tmp", *lines))]
    assert foreign == []
