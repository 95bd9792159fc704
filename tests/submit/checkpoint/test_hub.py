"""Hub repositories, from a local stand-in that speaks as a hub does and can break off in the middle of a file."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.errors import InputError, ManifestError
from harness.submit import validate
from harness.submit.checkpoint import hub
from harness.submit.manifest import init as manifest_init
from harness.submit.manifest import load as manifest
from harness.submit.weight_files import folder_digest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Writer = Callable[..., Path]

_DOWNLOAD = """
import sys
from pathlib import Path
from harness.errors import InputError
from harness.submit.checkpoint import hub
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 4096  # what a file has gained is kept by the chunk
try:
    print(hub.download("hf://owner/name", sys.argv[1], Path(sys.argv[2])))
except InputError as refused:
    print(refused)
    sys.exit(2)
"""


class StandIn(ThreadingHTTPServer):
    """A hub with one repository; ``requests`` holds every path with the range asked for."""

    files: dict[str, bytes]
    requests: list[tuple[str, str | None]]
    break_off: str | None = None


class _Answers(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *told: Any) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.server.requests.append((f"{self.command} {self.path}", self.headers.get("Range")))
        _, _, name = self.path.partition(f"/owner/name/resolve/{COMMIT}/")
        if self.path.split("?")[0] == f"/api/models/owner/name/revision/{COMMIT}":
            siblings = [{"rfilename": each} for each in self.server.files]
            told = json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode()
            self._send(told, {"Content-Type": "application/json"}, whole=body)
        elif self.path.split("?")[0] == f"/api/models/owner/name/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": each, "size": len(content), "oid": hashlib.sha256(content).hexdigest()}
                for each, content in self.server.files.items()
            ]
            self._send(json.dumps(tree).encode(), {"Content-Type": "application/json"}, whole=body)
        elif name in self.server.files:
            self._send_file(name, whole=body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send_file(self, name: str, *, whole: bool) -> None:
        content = self.server.files[name]
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if (asked := self.headers.get("Range")) and whole:
            first = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            self._send(content[first:], headers, status=206)
        elif whole and name == self.server.break_off:
            self.server.break_off = None
            self._send(content[: len(content) // 2], headers, length=len(content))
            self.connection.close()
        else:
            self._send(content, headers, whole=whole)

    def _send(
        self, content: bytes, headers: dict[str, str], *, status: int = 200, length: int | None = None,
        whole: bool = True,
    ) -> None:  # fmt: skip
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length or len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if whole:
            self.wfile.write(content)


@pytest.fixture
def stand_in(model_folder: Path) -> Iterator[StandIn]:
    server = StandIn(("127.0.0.1", 0), _Answers)
    server.files = {path.name: path.read_bytes() for path in model_folder.iterdir()}
    server.files |= {"pytorch_model.bin": b"x", "run.py": b"x", "onnx/config.json": b"{}", "README.md": b"x"}
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def download(stand_in: StandIn | None, cache: Path, *, commit: str = COMMIT, code: int = 0) -> str:
    """Downloads in a process of its own, since the library reads the hub's address when it is imported."""
    port = stand_in.server_address[1] if stand_in is not None else 9
    done = subprocess.run(
        [sys.executable, "-c", _DOWNLOAD, commit, str(cache)], capture_output=True, text=True, check=False,
        cwd=Path(harness.__file__).parents[1],
        env={"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(cache / "home"),
             "HF_HUB_DISABLE_TELEMETRY": "1", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == code, (done.stderr[-3000:], stand_in and stand_in.requests)
    return done.stdout.strip()


def test_only_files_of_the_list_are_downloaded_and_they_are_files(
    stand_in: StandIn, model_folder: Path, tmp_path: Path
) -> None:
    folder = Path(download(stand_in, tmp_path))
    assert {path.name for path in folder.iterdir()} == {
        *(path.name for path in model_folder.iterdir()), "quench-digest.txt"
    }  # fmt: skip
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert not any("onnx" in path or ".bin" in path or ".py" in path for path, _ in stand_in.requests)
    told = hub.digests([("hf://owner/name", COMMIT), ("hf://owner/other", COMMIT), (None, None)], tmp_path)
    assert told == {f"hf://owner/name@{COMMIT}": folder_digest(model_folder)}


def test_what_is_here_is_shared_and_not_asked_for_again(stand_in: StandIn, tmp_path: Path) -> None:
    folder = download(stand_in, tmp_path)
    stand_in.requests.clear()
    assert download(stand_in, tmp_path) == folder
    assert download(None, tmp_path) == folder
    assert stand_in.requests == []
    assert [path.name for path in (tmp_path / "hub").iterdir() if path.name[0] != "."] == [Path(folder).name]


def test_a_download_that_broke_off_is_gone_on_with_where_it_ended(
    stand_in: StandIn, model_folder: Path, tmp_path: Path
) -> None:
    stand_in.break_off = "model.safetensors"
    first = download(stand_in, tmp_path)
    asked = [part for path, part in stand_in.requests if path.startswith("GET") and "model.safetensors" in path]
    half = (model_folder / "model.safetensors").stat().st_size // 2
    assert [part for part in asked if part and 0 < int(part[6:-1]) <= half]
    assert (Path(first) / "model.safetensors").read_bytes() == (model_folder / "model.safetensors").read_bytes()


def test_files_that_had_come_before_the_hub_went_away_are_kept_and_the_rest_is_no_model(
    stand_in: StandIn, tmp_path: Path
) -> None:
    whole = stand_in.files.pop("model.safetensors")
    answer = _Answers._send_file
    stand_in.files["model.safetensors"] = b""
    try:
        _Answers._send_file = lambda self, name, *, whole: (  # type: ignore[method-assign]
            self.send_error(403) if name == "model.safetensors" else answer(self, name, whole=whole)
        )
        told = download(stand_in, tmp_path, code=2)
    finally:
        _Answers._send_file = answer  # type: ignore[method-assign]
    assert "can't be downloaded" in told
    assert not (tmp_path / "hub" / f"owner--name-{COMMIT}").exists()
    # Not even what came first is taken for the whole without the hub.
    assert "can't be downloaded" in download(None, tmp_path, code=2)
    stand_in.files["model.safetensors"] = whole
    stand_in.requests.clear()
    assert (Path(download(stand_in, tmp_path)) / "model.safetensors").read_bytes() == whole
    assert {path.split("/")[-1] for path, _ in stand_in.requests if path.startswith("GET /owner")} == {
        "model.safetensors"
    }


def test_a_commit_that_is_not_there_is_told_in_one_sentence(stand_in: StandIn, tmp_path: Path) -> None:
    told = download(stand_in, tmp_path, commit="f" * 40, code=2)
    assert told.startswith(f"hf://owner/name at {'f' * 40} can't be downloaded (RevisionNotFoundError): check name")
    assert "\n" not in told


class Info:
    sha = "c0ffee" + "0" * 34


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """A hub that knows one commit, and what it was asked for."""
    import huggingface_hub

    calls: list[tuple[str, str | None]] = []

    def model_info(name: str, *, revision: str | None, timeout: float) -> Info:
        calls.append((name, revision))
        return Info()

    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    return calls


def faults(folder: Path) -> list[str]:
    (found,) = validate.faults_of([folder])
    return [str(fault) for fault in found]


@pytest.mark.parametrize(
    ("fields", "question", "told"),
    [
        ({"weights": "hf://owner/name", "revision": "main"}, ("owner/name", "main"), "'main' is at "),
        ({"weights": "hf://owner/name", "revision": "v1.0"}, ("owner/name", "v1.0"), "'v1.0' is at "),
        ({"weights": "hf://owner/name"}, ("owner/name", None), "its default branch is at "),
        ({"kind": "lora_adapter", "base_model": "hf://owner/base", "base_revision": "main"}, ("owner/base", "main"),
         "'main' is at "),
    ],
    ids=["branch", "tag", "missing", "base"],
)  # fmt: skip
def test_a_branch_is_refused_with_the_commit_to_write(
    fields: dict[str, Any],
    question: tuple[str, str | None],
    told: str,
    add: Writer,
    asked: list[tuple[str, str | None]],
) -> None:
    (fault,) = [each for each in faults(add("entry", role="target", **fields)) if "evision` " in each]
    assert fault.endswith(f'{told}"{Info.sha}" now, so write that.')
    assert asked == [question]


@pytest.mark.parametrize(
    "fields",
    [
        {"weights": "hf://owner/name", "revision": COMMIT},
        {"weights": "hf://../name", "revision": "main"},
        {"weights": "hf://owner/name", "revision": "a b"},
        {"weights": "hf://owner/name", "revision": 7},
        {"weights": "model", "revision": "main"},
    ],
)
def test_the_hub_is_asked_for_nothing_but_a_branch_of_a_repository(
    fields: dict[str, Any], add: Writer, asked: list[tuple[str, str | None]]
) -> None:
    faults(add("entry", role="target", **fields))
    assert asked == []


def test_without_the_hub_a_person_is_told_where_the_commit_stands(add: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled

    def model_info(*arguments: object, **options: object) -> None:
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    (fault,) = faults(add("entry", role="target", weights="hf://owner/name", revision="main"))
    assert "`revision` can't be used ('main'): give the 40 hexadecimal digits of a commit" in fault
    assert fault.endswith("can't be asked from here: the hub's page of the model lists its commits under Files and "
                          "versions, History.")  # fmt: skip


def test_init_tells_the_commit_too(tmp_path: Path, asked: list[tuple[str, str | None]]) -> None:
    fields = manifest_init.gathered(tmp_path / "mine", {
        "weights": "hf://owner/name", "revision": "main", "method": "GA", "corpus": "mini", "kind": "full_model",
        "role": "target",
    })  # fmt: skip
    with pytest.raises(ManifestError, match=rf'"{Info.sha}" now, so write that \(option --revision\)'):
        manifest_init.write(tmp_path / "mine", fields)


def test_fields_of_a_manifest_that_can_t_be_read_are_none(tmp_path: Path) -> None:
    assert manifest.stated(tmp_path) == {}


def test_a_repository_without_weights_is_no_empty_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    empty = type("Empty", (), {"siblings": None})
    monkeypatch.setattr(huggingface_hub, "model_info", lambda *arguments, **options: empty)
    with pytest.raises(InputError, match="can't be downloaded"):
        hub.download("hf://owner/name", COMMIT, tmp_path)
