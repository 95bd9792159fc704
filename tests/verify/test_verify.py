"""The independent check finds no difference in what is stored, and finds whatever somebody changes."""

from __future__ import annotations

import functools
import inspect
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_import_directions as directions
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from harness import paths
from harness.cli.main import app
from harness.records import CellResult, DocumentRecord, Score
from harness.store.store import Store
from harness.store.withheld_texts import without_texts
from harness.verify import weights

SHIPPED = paths.content_dir("submissions")
ENTRY, TARGET, RETRAIN = "mini-npo-gdr-lora", "mini-target-4bit", "mini-retrain"
RTN, GPTQ = "rtn-4bit-g64", "gptq-4bit-g128-sym"
VERBMEM, KNOWMEM, PRIVLEAK = "muse_mini_verbmem_f", "muse_mini_knowmem_f", "muse_mini_privleak"
DEMO = sorted(path.parent.name for path in SHIPPED.glob("*/submission.yaml"))


@pytest.fixture(scope="module")
def of_entry(committed_cells: list[CellResult]) -> list[CellResult]:
    return [cell for cell in committed_cells if cell.cell.submission == ENTRY]


@pytest.fixture(autouse=True, scope="module")
def loaded_once() -> Iterator[None]:
    """Loads each model once: a quantizer's weights overwrite those before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "Dense", functools.cache(weights.Dense))
        yield


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Copies of an entry and its controls."""
    for name in (ENTRY, TARGET, RETRAIN):
        shutil.copytree(SHIPPED / name, tmp_path / "submissions" / name)
    return tmp_path / "submissions"


def quench(*arguments: str | Path, code: int) -> Result:
    result = CliRunner().invoke(app, ["verify", *map(str, arguments)])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def rows(*arguments: str | Path, code: int = 0) -> list[dict[str, Any]]:
    return list(json.loads(quench(*arguments, "--json", code=code).stdout)["rows"])


def results(*arguments: str | Path, code: int = 0) -> dict[tuple[str, str], str]:
    return {(row["quantizer"], row["check"]): row["result"] for row in rows(*arguments, code=code)}


def kept(path: Path, cells: Sequence[CellResult], quantizers: Sequence[str], tasks: Sequence[str]) -> Path:
    """Returns a store of some cells."""
    with Store.open(path) as opened:
        for cell in cells:
            if cell.cell.quantizer in quantizers and cell.cell.task in tasks:
                opened.add(cell)
    return path


Change = Callable[[CellResult], CellResult]


def first(**changes: Any) -> Change:
    """Returns what changes the first document of a cell."""

    def change(cell: CellResult) -> CellResult:
        documents = [replace(one, **changes) if one.index == 0 else one for one in cell.documents]
        return replace(cell, documents=tuple(documents))

    return change


def scored(metric: str, add: float) -> Change:
    def change(cell: CellResult) -> CellResult:
        return first(scores={**cell.documents[0].scores, metric: cell.documents[0].scores[metric] + add})(cell)

    return change


def without_first(cell: CellResult) -> CellResult:
    return replace(cell, documents=cell.documents[1:])


def without_number(cell: CellResult) -> CellResult:
    return first(scores={key: value for key, value in cell.documents[0].scores.items() if key != "loss"})(cell)


def summary(metric: str) -> Change:
    def change(cell: CellResult) -> CellResult:
        scores = [replace(one, value=(one.value or 0) + 1e-3) if one.metric == metric else one for one in cell.scores]
        return replace(cell, scores=tuple(scores))

    return change


def settings(**changes: Any) -> Change:
    return lambda cell: replace(cell, spec=replace(cell.spec, **changes))


def test_nothing_differs_under_two_quantizers(tmp_path: Path, of_entry: list[CellResult]) -> None:
    quantizers, tasks = ("reference", "bnb-nf4", GPTQ), (VERBMEM, KNOWMEM, PRIVLEAK)
    store = kept(tmp_path / "s.duckdb", of_entry, quantizers, tasks)
    found = rows(ENTRY, "--store", store)
    assert {(row["quantizer"], row["check"]): row["result"] for row in found} == {
        **{(quantizer, task): "same" for quantizer in quantizers[:2] for task in tasks},
        (GPTQ, "all tasks"): "not checked",
    }
    assert all(row["documents"] == 3 for row in found if row["result"] == "same")
    assert "calibrated" in next(row["reason"] for row in found if row["result"] == "not checked")
    # Numbers were computed, not copied: float32 sums in another order have other last bits.
    assert 0 < max(row["largest_difference"] or 0 for row in found) < 1e-5


@pytest.mark.parametrize(
    ("task", "change", "reason"),
    [
        (PRIVLEAK, scored("min_k_40", 1e-3), "document 0: min_k_40 is"),
        (PRIVLEAK, scored("loss", 1e-3), "document 0: loss is"),
        (PRIVLEAK, scored("tokens", 1), "document 0: tokens is"),
        (PRIVLEAK, without_number, "document 0: loss is .* no such score is stored"),
        (PRIVLEAK, first(invalid_reason="too short"), "counts here, and not in the store"),
        (PRIVLEAK, summary("privleak"), "privleak of all 144 stored documents"),
        (PRIVLEAK, summary("auc"), "auc of all"),
        (PRIVLEAK, summary("reference_auc"), None),
        (KNOWMEM, scored("knowmem_f", 1e-3), "document 0: knowmem_f is"),
        (KNOWMEM, first(response="\x1b[31m\u202e" * 40), "its answer here is"),
        (KNOWMEM, first(prompt_sha256="0" * 64), "prompt or text is another"),
        (KNOWMEM, first(reference_sha256="0" * 64), "reference is another"),
        (KNOWMEM, without_first, "document 0: the store lacks it"),
        (KNOWMEM, lambda cell: replace(cell, scores=()), "and None is stored"),
        (KNOWMEM, settings(bits=10**9, group_size=0), "stored with other settings"),
        (KNOWMEM, settings(options={"type": ["x"]}), "stored with other settings"),
        (KNOWMEM, settings(backend="reference"), "stored with other settings"),
        (KNOWMEM, lambda cell: replace(cell, submission=replace(cell.submission, weights_sha256="\x1b[2J")), "digest"),
    ],
)  # fmt: skip
def test_a_changed_row_differs(
    task: str, change: Change, reason: str | None, tmp_path: Path, of_entry: list[CellResult]
) -> None:
    own = [change(cell) for cell in of_entry if cell.cell.task == task]
    store = kept(tmp_path / "s.duckdb", own, (RTN,), (task,))
    # The AUC of the retrained model is the corpus's, whatever a row says; what was made with it is checked.
    (row,) = rows(ENTRY, "--store", store, "--documents", "1", code=0 if reason is None else 1)
    assert row["result"] == ("same" if reason is None else "different")
    assert reason is None or re.search(reason, row["reason"])
    assert str(row["reason"]).isprintable()
    assert len(str(row["reason"])) < 1_500


def test_a_mean_over_documents_that_are_not_scored_again_is_checked(tmp_path: Path, of_entry: list[CellResult]) -> None:
    def better(cell: CellResult) -> CellResult:
        return replace(cell, documents=(*cell.documents[:-1], _with(cell.documents[-1], "knowmem_f", -0.25)))

    store = kept(
        tmp_path / "s.duckdb", [better(cell) for cell in of_entry if cell.cell.task == KNOWMEM], (RTN,), (KNOWMEM,)
    )
    (row,) = rows(ENTRY, "--store", store, "--documents", "1", code=1)
    assert "of all" in row["reason"]


def _with(document: DocumentRecord, metric: str, add: float) -> DocumentRecord:
    return replace(document, scores={**document.scores, metric: document.scores[metric] + add})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda cell: replace(cell, documents=()), "keeps no documents"),
        (lambda cell: replace(cell, cell=replace(cell.cell, task="../../etc_knowmem_f")), "'../../etc_knowmem_f'"),
        (lambda cell: replace(cell, cell=replace(cell.cell, task="other")), "no task that this check knows"),
        (lambda cell: replace(cell, provenance=replace(cell.provenance, device="NVIDIA H200")), "on NVIDIA H200"),
        (lambda cell: replace(cell, cell=replace(cell.cell, quantizer="int4")), "'int4'"),
    ],
)
def test_what_can_not_be_checked_says_why_and_is_not_the_same(
    change: Change, reason: str, tmp_path: Path, of_entry: list[CellResult]
) -> None:
    path = tmp_path / "s.duckdb"
    with Store.open(path) as opened:
        opened.add(change(next(cell for cell in of_entry if cell.cell.quantizer == RTN and cell.cell.task == KNOWMEM)))
    (row,) = rows(ENTRY, "--store", path)
    assert row["result"] == "not checked"
    assert reason in row["reason"]


def test_a_library_that_is_not_here_is_named(
    tmp_path: Path, of_entry: list[CellResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(weight: torch.Tensor, spec: object) -> torch.Tensor:
        raise ModuleNotFoundError("No module named 'bitsandbytes'", name="bitsandbytes")

    monkeypatch.setitem(weights._DEQUANTIZED, "bnb", absent)
    store = kept(tmp_path / "s.duckdb", of_entry, ("bnb-nf4",), (KNOWMEM,))
    (row,) = rows(ENTRY, "--store", store)
    assert row["result"] == "not checked"
    assert "bitsandbytes" in row["reason"]


def test_answers_that_are_withheld_are_compared_by_their_digests(tmp_path: Path, of_entry: list[CellResult]) -> None:
    closed = [without_texts(cell) for cell in of_entry if cell.cell.quantizer == RTN]
    store = kept(tmp_path / "s.duckdb", closed, (RTN,), (KNOWMEM,))
    assert results(ENTRY, "--store", store, "--documents", "1") == {(RTN, KNOWMEM): "same"}
    mark = closed[0].documents[0].response
    store = kept(tmp_path / "t.duckdb", [first(response=f"{mark[:20]}{'0' * 64}]")(cell) for cell in closed], (RTN,),
                 (KNOWMEM,))  # fmt: skip
    assert results(ENTRY, "--store", store, "--documents", "1", code=1) == {(RTN, KNOWMEM): "different"}


def test_texts_that_are_not_here_are_not_checked(tmp_path: Path, of_entry: list[CellResult]) -> None:
    store = kept(tmp_path / "s.duckdb", of_entry, (RTN,), (KNOWMEM,))
    (tmp_path / "empty").mkdir()
    (row,) = rows(ENTRY, "--store", store, "--data-dir", tmp_path / "empty")
    assert row["result"] == "not checked"
    assert "knowmem" in row["reason"]


def off_by_one(weight: torch.Tensor, spec: Any) -> torch.Tensor:
    """Dequantizes as if each zero point were one lower: every code counts one more."""
    dense = weights._rtn(weight, spec)
    for part in dense.split(spec.group_size, dim=1):
        for row in part:
            levels = row.unique()
            if len(levels) > 1:
                row += (levels[1:] - levels[:-1]).min()
    return dense


def test_dequantizing_every_code_off_by_one_differs(
    tmp_path: Path, of_entry: list[CellResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(weights._DEQUANTIZED, "rtn", off_by_one)
    store = kept(tmp_path / "s.duckdb", of_entry, (RTN,), (PRIVLEAK,))
    (row,) = rows(ENTRY, "--store", store, "--documents", "1", code=1)
    assert row["largest_difference"] > 0.01


def test_changed_weights_differ_or_are_refused_by_their_digest(
    tmp_path: Path, folders: Path, of_entry: list[CellResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "Dense", inspect.unwrap(weights.Dense))
    store = kept(tmp_path / "s.duckdb", of_entry, ("reference",), (PRIVLEAK,))
    asked = (ENTRY, "--store", store, "--submissions", folders, "--documents", "1")
    assert results(*asked) == {("reference", PRIVLEAK): "same"}
    path = folders / ENTRY / "weights" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = min(name for name in tensors if "lora_B" in name)
    save_file({**tensors, name: tensors[name] * 1.25}, path)
    refused = quench(*asked, code=2)
    assert "digest" in refused.stderr
    manifest = folders / ENTRY / "submission.yaml"
    text = re.sub(r"\nweights_sha256: .*", "", manifest.read_text(encoding="utf-8"))
    manifest.write_text(text, encoding="utf-8")
    (row,) = rows(*asked, code=1)
    assert "min_k_40" in row["reason"]


def test_another_tokenizer_differs(tmp_path: Path, folders: Path, of_entry: list[CellResult]) -> None:
    store = kept(tmp_path / "s.duckdb", of_entry, ("reference",), (PRIVLEAK,))
    path = folders / TARGET / "weights" / "tokenizer.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    # The last merges are gone: rare words have more tokens.
    value["model"]["merges"] = value["model"]["merges"][:-100]
    path.write_text(json.dumps(value), encoding="utf-8")
    (row,) = rows(ENTRY, "--store", store, "--submissions", folders, "--documents", "1", code=1)
    assert "tokens is" in row["reason"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("no-such-entry",), "no-such-entry"),
        ((ENTRY, "--quantizer", "int4"), "int4"),
        ((TARGET,), "holds no cell"),
        ((ENTRY, "--documents", "0"), "--documents"),
        ((ENTRY, "--store", "nowhere.duckdb"), "There is no store"),
    ],
)
def test_a_wrong_call_is_one_sentence(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path, of_entry: list[CellResult]
) -> None:
    store = kept(tmp_path / "s.duckdb", of_entry, (RTN,), (KNOWMEM,))
    failed = quench(arguments[0], "--store", store, *arguments[1:], code=2)
    assert sentence in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert not failed.stdout


def test_a_cell_that_holds_fewer_documents_is_checked_as_far_as_it_goes(
    tmp_path: Path, of_entry: list[CellResult]
) -> None:
    def limited(cell: CellResult) -> CellResult:
        documents = cell.documents[:2]
        mean = sum(document.scores["knowmem_f"] for document in documents) / 2
        return replace(cell, cell=replace(cell.cell, limit=2), documents=documents,
                       scores=(Score(metric="knowmem_f", value=mean, num_docs=2),))  # fmt: skip

    of_task = [cell for cell in of_entry if cell.cell.task == KNOWMEM]
    store = kept(tmp_path / "s.duckdb", list(map(limited, of_task)), (RTN,), (KNOWMEM,))
    (row,) = rows(ENTRY, "--store", store)
    assert (row["result"], row["documents"]) == ("same", 2)


def test_the_check_shares_no_code_with_what_it_checks() -> None:
    todo, seen = [module for module in directions.IMPORTS if module.startswith("harness.verify")], set[str]()
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo.extend(directions.IMPORTS[module])
    rooms = {str(directions.child("harness", module)) for module in seen}
    assert rooms <= {"verify", "store", "records", "errors", "paths", "provenance"}


@pytest.mark.slow
@pytest.mark.parametrize("name", DEMO)
def test_no_demo_entry_differs_under_any_quantizer(name: str) -> None:
    found = rows(name, "--store", paths.content_dir("submissions").parent / "results.duckdb")
    assert {row["quantizer"] for row in found} == {
        row["quantizer"] for row in found if row["result"] == "same" or "calibrated" in row["reason"]
        or "library can't be used here" in row["reason"]
    }  # fmt: skip
    assert sum(row["result"] == "same" for row in found) >= 4 * 9
