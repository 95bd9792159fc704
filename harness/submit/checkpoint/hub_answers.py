"""Asks a model hub: waits where it is busy, and says in one sentence what is wrong and what to do."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Any, TypeVar

from harness.errors import InputError

_Answer = TypeVar("_Answer")

SECONDS = 10.0
"""How long one question may take to be answered."""

_ATTEMPTS = 5
_PATIENCE = 180.0
_RESET = re.compile(r"\bt=(\d{1,6})\b")

_AGAIN = "run the same command again, and files that came whole are not downloaded twice"
_BY_HAND = "put the files into the submission's folder"

# The library's errors by the names of their classes, the first that fits: what is wrong, and what to do.
_ERRORS = {
    "OfflineModeIsEnabled": "is not here, and HF_HUB_OFFLINE forbids to ask the hub: unset it, or {by_hand}",
    "GatedRepoError": "is gated: accept its licence at {page} and set HF_TOKEN to a token of that account",
    "DisabledRepoError": "has been disabled by the hub: name another repository, or {by_hand}",
    "RevisionNotFoundError": "is not on the hub, which has no such commit: write one that {page} lists under "
    "Files and versions, History",
    "RepositoryNotFoundError": "is not on the hub, or not shown to this machine: check the name at {page}, and for a "
    "private repository set HF_TOKEN to a token that may read it",
    "TooManyRedirects": "can't be downloaded, since {endpoint} redirects in a circle: check HF_ENDPOINT and the proxy",
    "UnsupportedProtocol": "can't be downloaded, since HF_ENDPOINT is no http(s) address or redirects to none: "
    "correct it",
    "ProxyError": "can't be downloaded, since the proxy refuses: check HTTPS_PROXY and NO_PROXY",
    "JSONDecodeError": "can't be downloaded, since what answers at {endpoint} is no hub: check HF_ENDPOINT, the proxy, "
    "and whether the network wants a login",
    "FileMetadataError": "can't be downloaded, since what answers at {endpoint} is no hub: check HF_ENDPOINT, the "
    "proxy, and whether the network wants a login",
    "ConnectTimeout": "can't be downloaded, since {endpoint} can't be reached from here: check the network, or "
    "{by_hand}",
    "ConnectError": "can't be downloaded, since {endpoint} can't be reached from here: check the network, or {by_hand}",
    "TimeoutException": "can't be downloaded, since the hub stopped answering: {again}",
    "TransportError": "was cut off while it was downloaded: {again}",
}
_STATUSES = {
    401: "can't be downloaded, since the hub refuses the token of HF_TOKEN or of its login: renew it, or remove it",
    403: "can't be downloaded, since the token may not read it: accept what {page} asks for, and set HF_TOKEN to a "
    "token that may read it",
    404: "is not whole on the hub, which lists a file and doesn't have it: check the commit at {page}",
    429: "can't be downloaded now, since the hub throttles this machine: wait {wait} seconds, then {again}; with "
    "HF_TOKEN set it allows more",
}
_FAILS = "can't be downloaded now, since the hub fails (it answers {status}): wait some minutes, then {again}"
# What a repository or a commit is to blame for, whoever asks and whenever.
_FINAL = ("DisabledRepoError", "RevisionNotFoundError", "RepositoryNotFoundError", 404)


class HubUnavailableError(InputError):
    """The hub can't be asked from here, or not now; that says nothing against what it was asked for."""


def ask(question: Callable[[], _Answer], reference: str, revision: str | None, *, attempts: int = _ATTEMPTS) -> _Answer:
    """Returns what a call of the hub's library returns; one that is throttled or fails is made again.

    It waits as long as the hub says (``Retry-After``), at most three minutes
    in all. The library's progress bars and warnings are not shown.

    Args:
        question: Calls the library.
        reference: ``hf://owner/name``, for the sentence.
        revision: The commit, for the sentence.
        attempts: How often it is called at most.

    Raises:
        HubUnavailableError: The hub can't be asked, or gives nothing to this
            machine now.
        InputError: It has no such repository, commit or file, or what came
            can't be kept.
    """
    until = time.monotonic() + _PATIENCE
    for attempt in count(1):
        try:
            with _quiet():
                return question()
        except InputError:
            raise
        except Exception as error:
            # Also what other programs below the library raise: each has classes of its own.
            wait = _wait(_response(error), attempt)
            if not _busy(_response(error)) or attempt >= attempts or time.monotonic() + wait > until:
                raise refusal(error, reference, revision) from error
            time.sleep(wait)
    raise AssertionError("unreachable")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and what it came from, the first cause last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _response(error: Exception) -> Any:
    return next((answer for cause in _chain(error) if (answer := getattr(cause, "response", None)) is not None), None)


def _busy(response: Any) -> bool:
    return response is not None and (response.status_code == 429 or response.status_code >= 500)


def _wait(response: Any, attempt: int) -> float:
    """Returns the seconds to wait before the next attempt: the hub's own, else 1, 2, 4 ..."""
    headers = {} if response is None else response.headers
    given = str(headers.get("Retry-After", "")).strip()
    if given.isdecimal() and len(given) < 7:
        return float(given)
    try:
        return max(0.0, (parsedate_to_datetime(given).astimezone(UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        reset = _RESET.search(str(headers.get("RateLimit", "")))
        return float(reset[1]) if reset else 2.0 ** (attempt - 1)


def refusal(error: Exception, reference: str, revision: str | None) -> InputError:
    """Returns what to raise for an error of the hub's library or of this machine's files: its sentence is ours."""
    from huggingface_hub import constants

    response = _response(error)
    status = getattr(response, "status_code", None)
    causes = list(_chain(error))
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    fitting = next((name for name in _ERRORS if name in names), None)
    if fitting is None and status == 401 and "nvalid credentials" not in response.headers.get("X-Error-Message", ""):
        # What is private and what isn't there look the same.
        fitting = "RepositoryNotFoundError"
    local = next(
        (c for c in causes if isinstance(c, OSError) and type(c).__module__ == "builtins" and c.strerror), None
    )
    final = fitting in _FINAL or (fitting is None and status in _FINAL)
    if fitting is not None:
        sentence = _ERRORS[fitting]
    elif status is not None and status >= 400:
        sentence = _STATUSES.get(status, _FAILS)
    elif local is not None:
        final, sentence = True, f"can't be kept here ({local.strerror}): free space, or give rights to the cache"
    elif isinstance(error, OSError) and "size" in str(error):
        sentence = _ERRORS["TransportError"]
    else:
        sentence = "can't be downloaded: check name, commit and network, or {by_hand}"
    where = f"{reference} at {revision}" if revision else reference
    sentence = sentence.format(
        page=f"{constants.ENDPOINT}/{reference.removeprefix('hf://')}", endpoint=constants.ENDPOINT, status=status,
        wait=round(_wait(response, 6)), again=_AGAIN, by_hand=_BY_HAND,
    )  # fmt: skip
    return (InputError if final else HubUnavailableError)(f"{where} {sentence}.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the library's bars and warnings off the screen, and all waiting out of it: it would wait without end."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import disable_progress_bars, hf_raise_for_status, logging

    def at_once(response: Any) -> None:
        if _busy(response):
            hf_raise_for_status(response)

    session, verbosity = get_session(), logging.get_verbosity()
    hooks = session.event_hooks
    session.event_hooks = {**hooks, "response": [*hooks["response"], at_once]}
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            disable_progress_bars()
            yield
    finally:
        session.event_hooks = hooks
        logging.set_verbosity(verbosity)
