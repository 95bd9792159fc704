"""The contract that strangers run: it passes the example of docs/extending, and fails packages that break a rule."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from stranger_packages import EXAMPLE, write_package

from harness.contract import tiny_models
from harness.score.corpora import places as corpus_places

ROOT = EXAMPLE.parent.parent


def run(site: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the contract as its page says, in a folder of its own, where the packages of ``site`` are installed."""
    path = f"{site}{os.pathsep}{ROOT}"
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "harness.contract", *options],
        cwd=site, env={**os.environ, "PYTHONPATH": path, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def copied(folder: Path, changes: dict[str, tuple[str, str]]) -> Path:
    """Returns a folder of packages with the example in it, some of its files changed."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for path in (EXAMPLE / "quench_example").rglob("*"):
        place = folder / path.relative_to(EXAMPLE)
        if path.is_file() and path.suffix != ".pyc":
            place.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8")
            old, new = changes.get(path.name, ("", ""))
            assert old in text
            place.write_text(text.replace(old, new, 1) if old else text, encoding="utf-8")
    write_package(folder, project["name"], project["version"], project["entry-points"])
    return folder


def test_the_example_fulfils_the_contract(tmp_path: Path) -> None:
    done = run(copied(tmp_path, {}))
    assert done.returncode == 0, done.stdout
    for name in ("failed", "error"):
        assert name not in done.stdout.splitlines()[-1]
    assert int(done.stdout.splitlines()[-1].split(" passed")[0].split()[-1]) > 30


NOISE = "weight.float() + 1e-4 * torch.rand_like(weight.float())"
DAMAGE: dict[str, tuple[dict[str, tuple[str, str]], tuple[str, ...]]] = {
    "numbers": (
        {
            "pow2.py": ("weight.float()", NOISE),
            "first_words.py": ("right / len(wanted)", "float(right)"),
            "corpus.json": ('"data_sha256": "', '"data_sha256": "f'),
        },
        (
            "repeats_itself_holds_its_proof",
            "value_in_its_range",
            "tells_answers_apart",
            "folder_has_no_fault",
            "digest_that_is_pinned",
        ),
    ),
    "names": (
        {
            "pow2.py": ("return None if told is None else", "return _spec(4, 64) if told is None else"),
            "first_words.py": ("right / len(wanted)", "0.5"),
            "privleak.yaml": ("task:", "doc_to_text: '{{ x }}'\ntask:"),
        },
        ("names_are_its_own", "tells_answers_apart", "folder_has_no_fault"),
    ),
    "haste": (
        {
            "pow2.py": ("import re\n", "import re\nimport numpy\n"),
            "first_words.py": ("return right", "raise ValueError\n    return right"),
            "verbmem_f.yaml": ("do_sample: false", "do_sample: true"),
        },
        ("loads_no_numerical_library", "value_in_its_range", "tells_answers_apart", "folder_has_no_fault"),
    ),
    "weights": (
        {"pow2.py": ("            replace_weight(linear, layers[name].dequantize())\n", "")},
        ("repeats_itself_holds_its_proof",),
    ),
}


@pytest.mark.parametrize(
    "damage", ["numbers", *(pytest.param(name, marks=pytest.mark.slow) for name in DAMAGE if name != "numbers")]
)
def test_a_package_that_breaks_a_rule_fails_the_test_of_that_rule_and_no_other(damage: str, tmp_path: Path) -> None:
    changes, broken = DAMAGE[damage]
    done = run(copied(tmp_path, changes), "-k", "not awkward and not first_documents and not 8bit and not 3bit")
    assert done.returncode == 1, done.stdout
    failed = {line.split("::")[1].split("[")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")}
    assert len(failed) == len(broken)
    for name in broken:
        assert any(name in test for test in failed), f"{name} is not among {failed}"


def test_without_anything_installed_it_fails_and_says_what_to_do(tmp_path: Path) -> None:
    done = run(tmp_path, "-k", "installed or broken")
    assert done.returncode == 1
    assert "no installed package declares an entry point of quench.quantizers, quench.corpora, quench" in done.stdout
    assert "pip install ." in done.stdout


def test_a_corpus_that_the_environment_names_is_tested_as_well(tmp_path: Path) -> None:
    letters = EXAMPLE / "quench_example" / "muse_letters"
    done = run(tmp_path, "-k", "test_corpora and fault or installed", **{corpus_places.VARIABLE: str(letters)})
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


@pytest.mark.parametrize("text", ["Grüße\n\nan alle.", "", "\N{SNOWMAN} 1/2", "tab\tend "])
def test_the_reader_of_corpora_reads_any_text(text: str) -> None:
    _, tokenizer = tiny_models.reader()
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(ids) == len(text.encode("utf-8"))


def test_every_shape_is_one_that_its_function_makes(tmp_path: Path) -> None:
    made: Callable[..., object] = tiny_models.checkpoint
    assert {"llama", "gqa576"} < set(tiny_models.SHAPES)
    with pytest.raises(KeyError):
        made("another", tmp_path)
