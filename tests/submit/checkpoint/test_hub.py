"""Hub repositories, from a hub of this machine that speaks as the real one does and fails in every way it can."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, Fault, Hub, point_at, serving

import harness
from harness.errors import InputError, ManifestError
from harness.submit import validate
from harness.submit.checkpoint import hub
from harness.submit.checkpoint.hub_answers import HubUnavailableError
from harness.submit.manifest import init as manifest_init
from harness.submit.manifest import load as manifest
from harness.submit.weight_files import folder_digest

NAME = "hf://owner/name"
KEPT = f"owner--name-{COMMIT}"
Writer = Callable[..., Path]

_DOWNLOAD = """
import sys
from pathlib import Path
from harness.submit.checkpoint import hub
print(hub.download("hf://owner/name", sys.argv[1], Path(sys.argv[2])))
"""


@pytest.fixture
def there(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one model, and files beside it that nobody wants."""
    with serving() as server:
        server.add("owner/name", model_folder)
        server.repositories["owner/name"] |= {"pytorch_model.bin": b"x", "run.py": b"x", "README.md": b"x"}
        point_at(server.address, monkeypatch)
        yield server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Takes the waiting out of this process, and says how long it would have been."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


def nothing_kept(cache: Path) -> bool:
    return not any(path.name == KEPT for path in cache.glob("hub/*"))


def test_only_files_of_the_list_are_downloaded_and_they_are_files(
    there: Hub, model_folder: Path, tmp_path: Path
) -> None:
    folder = hub.download(NAME, COMMIT, tmp_path)
    names = {path.name for path in model_folder.iterdir()}
    assert {path.name for path in folder.iterdir()} == {*names, "quench-digest.txt"}
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert set(there.taken()) == names
    told = hub.digests([(NAME, COMMIT), ("hf://owner/other", COMMIT), (None, None)], tmp_path)
    assert told == {f"{NAME}@{COMMIT}": folder_digest(model_folder)}


def test_what_is_here_is_shared_and_not_asked_for_again(there: Hub, tmp_path: Path) -> None:
    folder = hub.download(NAME, COMMIT, tmp_path)
    there.requests.clear()
    assert hub.download(NAME, COMMIT, tmp_path) == folder
    assert there.requests == []
    assert [path.name for path in (tmp_path / "hub").iterdir() if path.name[0] != "."] == [folder.name]


def test_the_address_of_the_environment_is_asked_and_the_library_says_nothing(
    there: Hub, model_folder: Path, tmp_path: Path
) -> None:
    there.faults = [Fault("GET /owner", headers={"X-HF-Warning": "x; set a token"}, status=503, times=1)]
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", _DOWNLOAD, COMMIT, str(tmp_path)], capture_output=True, text=True,
        check=True, cwd=Path(harness.__file__).parents[1],
        env={"HF_ENDPOINT": there.address, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home"), "PATH": ""},
    )  # fmt: skip
    assert folder_digest(Path(done.stdout.strip())) == folder_digest(model_folder)
    assert done.stderr == ""


def test_mistral_s_second_copy_of_the_weights_is_left_there(there: Hub, model_folder: Path, tmp_path: Path) -> None:
    there.repositories["owner/name"]["consolidated.safetensors"] = b"x"
    assert folder_digest(hub.download(NAME, COMMIT, tmp_path)) == folder_digest(model_folder)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_other_bytes_of_the_right_size_are_refused_and_the_next_time_downloaded_anew(
    file: str, there: Hub, model_folder: Path, tmp_path: Path
) -> None:
    right = there.repositories["owner/name"][file]
    there.faults = [Fault(f"/{file}", body=right[:-1] + bytes([right[-1] ^ 1]))]
    with pytest.raises(InputError, match=rf"{file} came with other bytes than the hub lists") as refused:
        hub.download(NAME, COMMIT, tmp_path)
    assert "\n" not in str(refused.value)
    assert nothing_kept(tmp_path)
    there.faults = []
    assert folder_digest(hub.download(NAME, COMMIT, tmp_path)) == folder_digest(model_folder)


def test_a_hub_that_lists_no_digest_or_another_commit_is_no_hub(there: Hub, tmp_path: Path) -> None:
    plain = b'{"id": "owner/name", "sha": "%s", "siblings": [{"rfilename": "config.json", "size": 2}]}'
    there.faults = [Fault("/api/", body=plain % COMMIT.encode())]
    with pytest.raises(InputError, match=r"lists config\.json without a digest"):
        hub.download(NAME, COMMIT, tmp_path)
    there.faults = [Fault("/api/", body=plain % b"main")]
    with pytest.raises(InputError, match="the hub answers with commit main"):
        hub.download(NAME, COMMIT, tmp_path)


def test_a_token_goes_to_the_hub_and_to_no_other_host(
    there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.download(NAME, COMMIT, tmp_path)
    hub.preview(NAME, COMMIT, tmp_path / "other")
    assert [path for path, _ in there.requests if path.startswith("GET /cdn")]
    assert there.tokens_off_the_hub == []


# What goes wrong, what stands in the sentence, whether it is the repository's fault, and waits between attempts.
FAULTS = {
    "gated": ([Fault("/resolve/", 403, {"X-Error-Code": "GatedRepo"})],
              "is gated: accept its licence at {address}/owner/name and set HF_TOKEN", False, []),
    "gated, no token": ([Fault("/resolve/", 401, {"X-Error-Code": "GatedRepo"})], "is gated: accept", False, []),
    "private or missing": ([Fault("/api/", 401)], "check the name at {address}/owner/name, and for", True, []),
    "missing": ([Fault("/api/", 404, {"X-Error-Code": "RepoNotFound"})], "is not on the hub, or not shown", True, []),
    "no such commit": ([Fault("/api/", 404, {"X-Error-Code": "RevisionNotFound"})], "has no such commit", True, []),
    "disabled": ([Fault("/api/", 403, {"X-Error-Message": "Access to this resource is disabled."})],
                 "has been disabled by the hub", True, []),
    "token refused": ([Fault("/api/", 401, {"X-Error-Message": "Invalid credentials in Authorization header"})],
                      "refuses the token of HF_TOKEN", False, []),
    "forbidden": ([Fault("GET /cdn", 403)], "the token may not read it", False, []),
    "a file is gone": ([Fault("model.safetensors", 404, {"X-Error-Code": "EntryNotFound"})], "lists a file", True, []),
    "throttled": ([Fault("/api/", 429, {"Retry-After": "7"})], "wait 7 seconds, then run", False, [7.0] * 4),
    "throttled in between": ([Fault("GET /cdn", 429, {"Retry-After": "7"})], "wait 7 seconds", False, [7.0] * 4),
    "throttled by its window": ([Fault("/api/", 429, {"RateLimit": '"api";r=0;t=9'})], "wait 9 sec", False, [9.0] * 4),
    "throttled for an hour": ([Fault("/api/", 429, {"Retry-After": "3600"})], "wait 3600 seconds", False, []),
    "a file for an hour": ([Fault("GET /cdn", 429, {"Retry-After": "3600"})], "wait 3600 seconds", False, []),
    "fails": ([Fault("/api/", 503)], "the hub fails (it answers 503): wait some minutes", False, [1.0, 2.0, 4.0, 8.0]),
    "fails for a file": ([Fault("HEAD /owner", 500)], "it answers 500", False, [1.0, 2.0, 4.0, 8.0]),
    "fails with a list": ([Fault("/api/", 502, body=b"[1]")], "it answers 502", False, [1.0, 2.0, 4.0, 8.0]),
    "redirected in a circle": ([Fault("/api/", 302, {"Location": "/api/models/owner/name"})], "in a circle", False, []),
    "redirected to nowhere": ([Fault("/api/", 302, {"Location": "ftp://nowhere"})], "no http(s) address", False, []),
    "a login page": ([Fault("/api/", body=b"<html>Log in</html>")], "is no hub: check HF_ENDPOINT", False, []),
    "no listing": ([Fault("/api/", body=b"[]")], "can't be downloaded: check name", False, []),
    "cut off": ([Fault("GET /cdn", cut=True)], "was cut off while it was downloaded: run the same", False, [1.0] * 5),
    "slow": ([Fault("/api/", seconds=0.4)], "stopped answering: run the same", False, []),
    "a slow file": ([Fault("GET /cdn", seconds=0.4)], "stopped answering: run the same", False, [1.0] * 5),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_hub_has_its_sentence_and_keeps_nothing(
    fault: str, there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    faults, sentence, final, waits = FAULTS[fault]
    sleep, waited = time.sleep, list[float]()
    # The hub's own slowness stays.
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds) if seconds == 0.4 else waited.append(seconds))
    if "slow" in fault:
        monkeypatch.setattr(hub, "SECONDS", 0.05)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    there.faults = [Fault(*(getattr(each, name) for name in Fault.__slots__)) for each in faults]
    with pytest.raises(InputError) as refused:
        hub.download(NAME, COMMIT, tmp_path)
    told = str(refused.value)
    assert sentence.format(address=there.address) in told
    assert told.startswith(f"{NAME} at {COMMIT} ")
    assert told.endswith(".")
    assert "\n" not in told
    assert not any(word in told for word in ("Error", "Exception", "httpx", "urllib"))
    assert isinstance(refused.value, HubUnavailableError) is not final
    assert [each for each in waited if each] == waits
    assert nothing_kept(tmp_path)


def test_a_hub_that_is_not_there_and_one_that_may_not_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    point_at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(HubUnavailableError, match=r"http://127\.0\.0\.1:9 can't be reached from here: check the net"):
        hub.download(NAME, COMMIT, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnavailableError, match="HF_HUB_OFFLINE forbids to ask the hub: unset it"):
        hub.download(NAME, COMMIT, tmp_path)


def test_a_cache_that_can_t_be_written_is_no_fault_of_the_hub(there: Hub, tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"can't be kept here \((File exists|Not a directory)\): free space"):
        hub.download(NAME, COMMIT, tmp_path)


@pytest.mark.parametrize(
    ("faults", "waits"),
    [
        ([Fault("/api/", 429, {"Retry-After": "3"}, times=2)], [3.0, 3.0]),
        ([Fault("GET /owner", 503, times=1)], [1.0]),
        ([Fault("GET /cdn", 429, {"Retry-After": "2"}, times=1), Fault("HEAD /owner", 500, times=2)], None),
        ([Fault("GET /cdn", cut=True, times=1)], [1.0]),
    ],
)
def test_a_hub_that_comes_back_is_waited_for(
    faults: list[Fault], waits: list[float] | None, there: Hub, model_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    there.faults = faults
    assert folder_digest(hub.download(NAME, COMMIT, tmp_path)) == folder_digest(model_folder)
    assert waits is None or [each for each in waited if each] == waits


def test_a_date_to_come_back_at_is_waited_for(there: Hub, tmp_path: Path, waits: list[float]) -> None:
    there.faults = [Fault("/api/", 429, {"Retry-After": formatdate(time.time() + 30, usegmt=True)}, times=1)]
    hub.download(NAME, COMMIT, tmp_path)
    assert 25 < max(waits) <= 30


def test_a_file_that_was_cut_off_is_gone_on_with_where_it_ended(
    there: Hub, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    there.faults = [Fault("GET /cdn", cut=True, times=1)]
    hub.download(NAME, COMMIT, tmp_path)
    half = (model_folder / "model.safetensors").stat().st_size // 2
    assert [part for _, part in there.requests if part and 0 < int(part[6:-1]) <= half]


def test_files_that_had_come_before_the_hub_went_away_are_kept_and_the_rest_is_no_model(
    there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.faults = [Fault("GET /cdn", 403)]
    with pytest.raises(InputError):
        hub.download(NAME, COMMIT, tmp_path)
    point_at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(InputError, match="can't be reached"):
        hub.download(NAME, COMMIT, tmp_path)
    assert nothing_kept(tmp_path)
    point_at(there.address, monkeypatch)
    there.faults = []
    there.requests.clear()
    hub.download(NAME, COMMIT, tmp_path)
    assert there.taken() == ["model.safetensors"]


def test_a_preview_has_headers_and_configs_and_the_digest_of_the_whole(
    there: Hub, model_folder: Path, tmp_path: Path
) -> None:
    folder = hub.preview(NAME, COMMIT, tmp_path)
    whole, seen = model_folder / "model.safetensors", folder / "model.safetensors"
    assert seen.stat().st_size == whole.stat().st_size
    assert seen.read_bytes()[:100] == whole.read_bytes()[:100]
    assert seen.read_bytes() != whole.read_bytes()
    assert (folder / "config.json").read_bytes() == (model_folder / "config.json").read_bytes()
    assert hub.content_digest(NAME, COMMIT, tmp_path) == folder_digest(model_folder)
    # It is none of what a run has downloaded.
    assert hub.digests([(NAME, COMMIT)], tmp_path) == {}
    assert hub.download(NAME, COMMIT, tmp_path) == hub.preview(NAME, COMMIT, tmp_path) != folder


@pytest.mark.parametrize(
    "start", [b"", b"\x00" * 4, (300_000).to_bytes(8, "little") + b"{" * 300_000, b"\xff" * 500_000]
)
def test_a_preview_of_any_header_is_as_long_as_the_file_and_ends(start: bytes, there: Hub, tmp_path: Path) -> None:
    there.repositories["owner/name"]["model.safetensors"] = start
    seen = hub.preview(NAME, COMMIT, tmp_path) / "model.safetensors"
    assert seen.stat().st_size == len(start)
    assert len(start) > 400_000 or seen.read_bytes() == start
    shutil.rmtree(seen.parent)


class Info:
    sha = "c0ffee" + "0" * 34


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """A hub that knows one commit, and what it was asked for."""
    import huggingface_hub

    calls: list[tuple[str, str | None]] = []

    def model_info(name: str, *, revision: str | None, timeout: float, **options: object) -> Info:
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

    empty = type("Empty", (), {"siblings": None, "sha": None})
    monkeypatch.setattr(huggingface_hub, "model_info", lambda *arguments, **options: empty)
    with pytest.raises(InputError, match="holds none of the files that are read"):
        hub.download("hf://owner/name", COMMIT, tmp_path)
