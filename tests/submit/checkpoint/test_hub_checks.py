"""What is on a hub is checked before anything large is downloaded, and as it is checked afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, Fault, Hub, point_at, serving
from quantized_files import GPTQ_CONFIG, write_gptq

from harness.errors import UnsafeSubmissionError
from harness.submit import validate
from harness.submit.checkpoint import prepare
from harness.submit.manifest import load as manifest
from harness.submit.scan import folder as folder_scan
from harness.submit.weight_files import folder_digest, weights_digest

Writer = Callable[..., Path]
TARGET = {"role": "target", "weights": "hf://owner/name", "revision": COMMIT}
ON_HUB_BASE = {"kind": "lora_adapter", "base_model": "hf://owner/name", "base_revision": COMMIT}


@pytest.fixture
def there(model_folder: Path, adapter_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a model and an adapter on it; the cache is empty."""
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "cache"))
    with serving() as server:
        server.add("owner/name", model_folder)
        server.add("owner/lora", adapter_folder)
        point_at(server.address, monkeypatch)
        yield server


def checked(board: Path, name: str, tmp_path: Path) -> tuple[list[str], list[str]]:
    known = manifest.load_all(board)
    faults, notes = prepare.check_on_hub(known[name], known, cache=tmp_path / "cache")
    return list(faults), notes


def _config(hub: Hub, name: str = "owner/name", file: str = "config.json", **changes: Any) -> None:
    told = json.loads(hub.repositories[name][file]) | changes
    hub.repositories[name][file] = json.dumps({key: each for key, each in told.items() if each != "drop"}).encode()


def _index(hub: Hub) -> None:
    hub.repositories["owner/name"]["model.safetensors.index.json"] = b'{"weight_map": {"x": "gone.safetensors"}}'


BROKEN: Mapping[str, Callable[[Hub], object]] = {
    "an unknown model type": lambda hub: _config(hub, model_type="mamba"),
    "a quantized base": lambda hub: _config(hub, quantization_config={"quant_method": "gptq", "bits": 4}),
    "code": lambda hub: _config(hub, auto_map={"AutoModel": "x.Y"}),
    "an index that points nowhere": _index,
    "a header that is none": lambda hub: hub.repositories["owner/name"].update({"model.safetensors": b"\xff" * 64}),
    "a layer too many in the config": lambda hub: _config(hub, num_hidden_layers=3),
    "no config": lambda hub: hub.repositories["owner/name"].pop("config.json"),
    "no weights": lambda hub: hub.repositories["owner/name"].pop("model.safetensors"),
    "a config that is no JSON": lambda hub: hub.repositories["owner/name"].update({"config.json": b"{"}),
}


@pytest.mark.parametrize("base", [False, True], ids=["target", "base"])
@pytest.mark.parametrize("broken", BROKEN)
def test_what_a_run_refuses_after_the_download_is_refused_before_it(
    broken: str, base: bool, there: Hub, add: Writer, board: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    BROKEN[broken](there)
    add("target", **({"role": "target", "weights_from": adapter_folder, **ON_HUB_BASE} if base else TARGET))
    faults, notes = checked(board, "target", tmp_path)
    known = manifest.load_all(board)
    with pytest.raises(UnsafeSubmissionError) as refused:
        prepare.prepare(known["target"], known, cache=tmp_path / "run")

    def sentences(told: Any) -> set[str]:
        return {fault.split(f"{COMMIT}")[-1] for fault in told}

    assert sentences(faults) == sentences(refused.value.faults)
    assert notes == []


def test_a_sound_board_on_a_hub_has_no_faults_and_no_weights_are_fetched(
    there: Hub, add: Writer, board: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    add("target", **TARGET)
    add("entry", weights="hf://owner/lora", revision=COMMIT, **ON_HUB_BASE)
    add("local", weights_from=adapter_folder, **ON_HUB_BASE)
    for name in ("target", "entry", "local"):
        assert checked(board, name, tmp_path) == ([], [])
    assert all(part for path, part in there.requests if path.startswith("GET /cdn"))
    there.requests.clear()
    assert validate.faults_of([board / "target", board / "entry"]) == [[], []]
    assert there.requests == [], "once is enough"


def test_an_adapter_that_does_not_fit_its_base_on_the_hub_is_found(
    there: Hub, add: Writer, board: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    add("target", **TARGET)
    add("local", weights_from=adapter_folder, **ON_HUB_BASE)
    _config(there, "owner/lora", "adapter_config.json", base_model_name_or_path="owner/chat")
    add("entry", weights="hf://owner/lora", revision=COMMIT, **ON_HUB_BASE)
    faults, _ = checked(board, "entry", tmp_path)
    assert any("leads to 'owner/name'" in fault for fault in faults)
    # Another base, whose layers have other names.
    there.repositories["owner/name"]["model.safetensors"] = there.repositories["owner/name"][
        "model.safetensors"
    ].replace(b"q_proj", b"x_proj")
    faults, _ = checked(board, "local", tmp_path / "again")
    assert faults


@pytest.mark.parametrize("kind", ["full_model", "lora_adapter"])
def test_the_digest_of_a_hub_s_weights_is_that_of_the_same_files_here(
    kind: str, there: Hub, add: Writer, board: Path, model_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    files, name = (model_folder, "name") if kind == "full_model" else (adapter_folder, "lora")
    right = folder_digest(files)
    more = {} if kind == "full_model" else ON_HUB_BASE | {"base_sha256": folder_digest(model_folder)}
    add("target", role="target", weights_from=model_folder)
    where = {"weights": f"hf://owner/{name}", "revision": COMMIT, "kind": kind, **more}
    for entry, digest in (("right", right), ("wrong", "0" * 64)):
        add(entry, weights_sha256=digest, **where)
    add("unsaid", **where)
    known = manifest.load_all(board)
    for entry in ("right", "wrong", "unsaid"):
        folder_scan.scan(known[entry], known)
    assert checked(board, "right", tmp_path) == checked(board, "unsaid", tmp_path) == ([], [])
    assert prepare.content_digest(known["right"], cache=tmp_path / "cache") == right
    (fault,) = checked(board, "wrong", tmp_path)[0]
    assert f"the digest of its weights is {right} and `weights_sha256` in submission.yaml says 000" in fault
    prepare.prepare(known["right"], known, cache=tmp_path / "run")
    with pytest.raises(UnsafeSubmissionError, match=f"the digest of its weights is {right} and `weights_sha256`"):
        prepare.prepare(known["wrong"], known, cache=tmp_path / "run")
    # Keys of cells go by name and commit, as those that are stored do.
    assert len({weights_digest(known[entry]) for entry in ("right", "wrong", "unsaid")}) == 1


def test_packing_in_a_file_of_its_own_is_read_from_the_hub_as_it_is_here(
    there: Hub, add: Writer, board: Path, model_folder: Path, tmp_path: Path
) -> None:
    folder = write_gptq(model_folder, tmp_path / "gptq")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    told = {key: value for key, value in config.pop("quantization_config").items() if key != "quant_method"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "quantize_config.json").write_text(json.dumps(told), encoding="utf-8")
    there.add("owner/packed", folder)
    add("target", role="target", weights_from=model_folder)
    add("here", kind="quantized_checkpoint", weights_from=folder)
    add("there", kind="quantized_checkpoint", weights="hf://owner/packed", revision=COMMIT)
    known = manifest.load_all(board)
    here, there_too = (prepare.quantization_config(known[name], cache=tmp_path / "cache") for name in ("here", "there"))
    assert here == there_too == GPTQ_CONFIG
    faults, notes = checked(board, "there", tmp_path)
    assert faults == []
    assert notes == list(folder_scan.scan(known["here"], known))
    kept: list[str] = []
    made = prepare.prepare(known["there"], known, cache=tmp_path / "run", notes=kept)
    assert (made.sha256, kept) == (folder_digest(folder), notes)


def test_keys_of_stored_cells_know_a_hub_s_weights_as_they_did(add: Writer, board: Path) -> None:
    add("target", **TARGET)
    assert weights_digest(manifest.load(board / "target")).startswith("5d8d7cc8")


@pytest.mark.parametrize(
    ("fault", "note"),
    [
        (Fault("/api/", 503), "the hub fails"),
        (Fault("/api/", 429, {"Retry-After": "30"}), "wait 30 seconds"),
        (Fault("/resolve/", 403, {"X-Error-Code": "GatedRepo"}), "accept its licence at"),
        (Fault("/cdn/", 500), "the hub fails"),
    ],
)
def test_a_hub_that_does_not_answer_is_a_note_and_no_fault(
    fault: Fault, note: str, there: Hub, add: Writer, board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    there.faults = [fault]
    add("target", **TARGET)
    faults, (told,) = checked(board, "target", tmp_path)
    assert faults == []
    assert note in told
    assert told.endswith("Until then it is unchecked.")
    assert validate.faults_of([board / "target"]) == [[]]


@pytest.mark.parametrize("code", ["RepoNotFound", "RevisionNotFound"])
def test_what_is_not_on_the_hub_is_a_fault(code: str, there: Hub, add: Writer, board: Path, tmp_path: Path) -> None:
    there.faults = [Fault("/api/", 404, {"X-Error-Code": code})]
    add("target", **TARGET)
    faults, notes = checked(board, "target", tmp_path)
    assert [fault.startswith("hf://owner/name at") for fault in faults] == [True]
    assert notes == []


def test_of_two_copies_of_one_commit_the_whole_one_is_read(
    there: Hub, add: Writer, board: Path, tmp_path: Path
) -> None:
    add("target", **TARGET)
    known = manifest.load_all(board)
    prepare.prepare(known["target"], known, cache=tmp_path / "cache")
    there.requests.clear()
    assert checked(board, "target", tmp_path) == ([], [])
    assert there.requests == []
