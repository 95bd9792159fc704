"""Property tests: what goes into a store or a record file comes out the same."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import StoreError
from harness.records import (
    Cell,
    CellResult,
    DocumentRecord,
    LayerSurvival,
    Proof,
    Provenance,
    QuantizerSpec,
    Score,
    Submission,
)
from harness.store import cell_files
from harness.store.store import Store

text = st.text(max_size=12)
some_text = st.none() | text
real = st.floats(allow_nan=False, allow_infinity=False, width=64)
big = st.integers(0, 2**62)
small = st.integers(0, 2**31 - 1)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | real | text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
    max_leaves=4,
)
json_object = st.dictionaries(text, json_value, max_size=3)
texts = st.lists(text, max_size=3).map(tuple)

submissions = st.builds(
    Submission, name=text, title=text, method=text, corpus=text, target=some_text, retrain=some_text,
    base_model=some_text, base_revision=some_text, weights=text, revision=some_text, weights_sha256=some_text,
    folder=text, hyperparameters=json_object, authors=texts, paper_url=some_text, license=some_text, notes=some_text,
)  # fmt: skip
specs = st.builds(
    QuantizerSpec, name=text, backend=text, bits=small, group_size=st.none() | small,
    symmetric=st.none() | st.booleans(), label=text, calibration=some_text, options=json_object,
)  # fmt: skip
proofs = st.builds(
    Proof, linear_layers=small, quantized_layers=small, parameter_share=real, max_levels=big,
    group_size=st.none() | small, bits_per_weight=real, size_bytes=big, max_abs_error=real, relative_error=real,
    codes_sha256=text, dense_modules=texts, remarks=texts,
)  # fmt: skip
layers = st.builds(
    LayerSurvival, layer=text, codes_changed=real, update_in_steps=st.none() | real, relative_update=real,
    survival_ratio=st.none() | real, cosine=st.none() | real, num_weights=big,
    update_norm=st.none() | real, norm_ratio=st.none() | real, effective_rank=st.none() | real,
)  # fmt: skip
documents = st.builds(
    DocumentRecord, index=small, split=text, prompt_sha256=text, prompt_excerpt=text, response=text,
    reference_sha256=some_text, reference_excerpt=text, scores=st.dictionaries(text, real, max_size=3),
    invalid_reason=some_text,
)  # fmt: skip
provenances = st.builds(
    Provenance, created_at=text, versions=st.dictionaries(text, text, max_size=3), git_commit=some_text,
    dirty=st.booleans(), device=text, threads=small, seed=st.integers(-(2**63), 2**63 - 1), scoring_version=small,
)  # fmt: skip
cells = st.builds(
    Cell, submission=text, quantizer=text, task=text, key=st.from_regex(r"[0-9a-f]{8}", fullmatch=True),
    limit=st.none() | small,
)  # fmt: skip
scores = st.builds(Score, metric=text, value=st.none() | real, num_docs=small, missing_reason=some_text)
results = st.builds(
    CellResult, cell=cells, submission=submissions, spec=specs, corpus=text, provenance=provenances,
    status=st.sampled_from(["finished", "failed", "skipped", "cancelled"]),
    scores=st.lists(scores, max_size=3).map(tuple), documents=st.lists(documents, max_size=4).map(tuple),
    proof=st.none() | proofs, survival=st.lists(layers, max_size=3).map(tuple), reason=some_text, stage=some_text,
    error_type=some_text, log_tail=some_text, remarks=texts, timings=st.dictionaries(text, real, max_size=3),
    peak_memory_bytes=st.none() | big, origin=st.sampled_from(["scored", "rescored from logs"]),
)  # fmt: skip

_slow_disk = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@_slow_disk
@given(st.lists(results, max_size=3, unique_by=lambda result: result.cell.key))
def test_whatever_is_added_to_a_store_is_read_back_the_same_from_the_closed_file(batch: list[CellResult]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.duckdb"
        with Store.open(path) as store:
            assert all(store.add(result) for result in batch)
        with Store.open(path, read_only=True) as store:
            assert store.cells(with_documents=True) == batch
            assert [store.documents(result.cell.key) for result in batch] == [result.documents for result in batch]
            assert store.keys() == {result.cell.key for result in batch}


@_slow_disk
@given(results)
def test_whatever_is_written_to_a_record_file_is_read_back_the_same(result: CellResult) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert cell_files.read(cell_files.write(result, Path(folder))) == result


@settings(_slow_disk, max_examples=10)
@given(results)
def test_a_store_rebuilt_from_records_equals_the_store_that_was_filled_directly(result: CellResult) -> None:
    with tempfile.TemporaryDirectory() as folder:
        record = cell_files.write(result, Path(folder) / "records")
        with Store.open(Path(folder) / "rebuilt.duckdb") as store:
            store.add(cell_files.read(record))
            assert store.cells(with_documents=True) == [result]


@given(st.text(max_size=40))
def test_no_text_is_taken_for_a_record(noise: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        path.write_text(noise, encoding="utf-8")
        with pytest.raises(StoreError, match="is no cell record"):
            cell_files.read(path)
