"""A model hub of this machine: it speaks as the real one does, and fails where a test says so."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hub_listing import blob_digest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_JSON = {"Content-Type": "application/json"}


@dataclass(slots=True)
class Fault:
    """What the hub does instead of answering a request.

    Attributes:
        at: Part of ``METHOD path``.
        status: What it answers; 200 sends the file or the listing.
        headers: Beside those of the answer.
        body: Of an answer that is no file; of a file, what is sent in its place.
        times: How often; then it answers as it should.
        cut: Whether the connection ends in the middle of a file.
        seconds: How long it waits before it answers.
    """

    at: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    times: int = 1000
    cut: bool = False
    seconds: float = 0.0


class Hub(ThreadingHTTPServer):
    """Repositories by name, each a mapping of files, all at ``COMMIT``; safetensors are in LFS, on another host."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str | None]] = []
        self.tokens_off_the_hub: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name: str, folder: Path) -> None:
        """Adds the files of a folder as a repository."""
        self.repositories[name] = {path.name: path.read_bytes() for path in folder.iterdir()}

    def taken(self) -> list[str]:
        """Returns the names of the files that were sent."""
        return [path.split("/")[-1] for path, _ in self.requests if path.startswith(("GET /cdn", "GET /owner"))]


class _Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *told: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        request = f"{self.command} {self.path}"
        self.server.requests.append((request, self.headers.get("Range")))
        fault = next((each for each in self.server.faults if each.times and each.at in request), None)
        if fault is not None:
            fault.times -= 1
            time.sleep(fault.seconds)
            if fault.status != 200:
                self._send(fault.status, fault.body or b"", {"X-Repo-Commit": COMMIT, **fault.headers})
                return
        path = self.path.split("?")[0]
        for name, files in self.server.repositories.items():
            if path.startswith(f"/api/models/{name}"):
                return self._list(path.removeprefix(f"/api/models/{name}"), name, files, fault)
            if path.startswith(f"/{name}/resolve/{COMMIT}/") and path.rsplit("/", 1)[-1] in files:
                return self._file(path.rsplit("/", 1)[-1], name, files, fault)
            if path.startswith(f"/cdn/{name}/"):
                if (token := self.headers.get("Authorization")) is not None:
                    self.server.tokens_off_the_hub.append(token)
                return self._content(files[path.rsplit("/", 1)[-1]], {}, fault)
        self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _list(self, rest: str, name: str, files: Mapping[str, bytes], fault: Fault | None) -> None:
        if rest not in ("", f"/revision/{COMMIT}", f"/revision/{COMMIT[:7]}", "/revision/main", f"/tree/{COMMIT}"):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        entries = [
            {"size": len(content), "blob": blob_digest(content),
             "lfs": {"lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}}
             if file.endswith(".safetensors") else {}, "name": file}
            for file, content in files.items()
        ]  # fmt: skip
        if "/tree/" in rest:
            told: object = [
                {"type": "file", "path": each["name"], "size": each["size"], "oid": each["blob"],
                 **{key: {**lfs, "oid": lfs["sha256"]} for key, lfs in each["lfs"].items()}}  # type: ignore[attr-defined]
                for each in entries
            ]  # fmt: skip
        else:
            told = {"id": name, "sha": COMMIT, "siblings": [
                {"rfilename": each["name"], "size": each["size"], "blobId": each["blob"], **each["lfs"]}  # type: ignore[dict-item]
                for each in entries
            ]}  # fmt: skip
        body = json.dumps(told).encode() if fault is None or fault.body is None else fault.body
        return self._send(200, body, _JSON)

    def _file(self, file: str, name: str, files: Mapping[str, bytes], fault: Fault | None) -> None:
        content = files[file]
        if not file.endswith(".safetensors"):
            return self._content(content, {"ETag": f'"{blob_digest(content)}"', "X-Repo-Commit": COMMIT}, fault)
        port = self.server.server_address[1]
        return self._send(302, b"", {
            "Location": f"http://localhost:{port}/cdn/{name}/{file}", "X-Repo-Commit": COMMIT,
            "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content)),
        })  # fmt: skip

    def _content(self, content: bytes, headers: Mapping[str, str], fault: Fault | None) -> None:
        length = len(content)
        content = content if fault is None or fault.body is None else fault.body
        if asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            part = content[int(first) : int(last) + 1 if last else None]
            headers = {**headers, "Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{length}"}
            return self._send(206, part, headers, cut=bool(fault and fault.cut))
        return self._send(200, content, headers, cut=bool(fault and fault.cut))

    def _send(self, status: int, content: bytes, headers: Mapping[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            try:
                self.wfile.write(content[: len(content) // 2] if cut else content)
            except OSError:
                # Who asked had enough.
                self.close_connection = True
        if cut:
            self.close_connection = True


@contextmanager
def serving() -> Iterator[Hub]:
    """Runs a hub without repositories."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def point_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process's hub library ask an address, as HF_ENDPOINT does for one that is started."""
    from huggingface_hub import close_session, constants, hf_api

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hf_api.api, "endpoint", address)
    close_session()
