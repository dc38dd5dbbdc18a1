"""Watches what the hub's client is told by a server: where to go, and under which names to keep what it fetches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from hasn_cli.errors import DownloadError
from hasn_cli.weights.addresses import why_not_to_follow, without_secrets

NAMES_FILES = ("X-Repo-Commit", "ETag", "X-Linked-ETag")  # answers that become names in the cache
PLAIN = re.compile(r'(W/)?"?[\w.:+=-]{1,256}"?', re.ASCII)

_watching: ContextVar[bool] = ContextVar("watching", default=False)  # other users of the client are not our business


@contextmanager
def watched() -> Iterator[None]:
    """Within this, no request of the hub's client follows a redirect that `addresses` forbids.

    Raises:
        DownloadError: a server tried.
    """
    from huggingface_hub import get_session

    client = get_session()
    hooks = client.event_hooks
    if _check_request not in hooks["request"]:
        client.event_hooks = {
            "request": [*hooks["request"], _check_request],
            "response": [*hooks["response"], _check_response],
        }
    token = _watching.set(True)
    try:
        yield
    finally:
        _watching.reset(token)


def _check_request(request: Any) -> None:
    from huggingface_hub import constants

    if not _watching.get():
        return
    reason = why_not_to_follow(constants.ENDPOINT, str(request.url))
    if reason is not None:
        raise _refused(f"{constants.ENDPOINT} sends to {without_secrets(str(request.url))}, which is refused: {reason}")


def _check_response(response: Any) -> None:
    if not _watching.get():
        return
    for name in NAMES_FILES:
        value = response.headers.get(name)
        if value is not None and (not PLAIN.fullmatch(value) or ".." in value):
            raise _refused(f"{without_secrets(str(response.url))} answers with a {name} that is none")


def _refused(message: str) -> DownloadError:
    return DownloadError(message, "HF_ENDPOINT names another mirror; nothing was kept")
