"""Check what servers tell the hub's client: where to redirect, and under which names to store files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from hasn_cli.errors import DownloadError
from hasn_cli.weights.addresses import why_not_to_follow, without_secrets

NAMES_FILES = ("X-Repo-Commit", "ETag", "X-Linked-ETag")  # headers whose values become names in the cache
PLAIN = re.compile(r'(W/)?"?[\w.:+=-]{1,256}"?', re.ASCII)

_watching: ContextVar[bool] = ContextVar("watching", default=False)  # only our own requests are checked


@contextmanager
def watched() -> Iterator[None]:
    """Within this context, the hub's client follows no redirect that `addresses` forbids.

    Raises:
        DownloadError: a server sent such a redirect, or an invalid name.
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
        target = without_secrets(str(request.url))
        raise _refused(f"{constants.ENDPOINT} redirects to {target}, which is refused: {reason}")


def _check_response(response: Any) -> None:
    if not _watching.get():
        return
    for name in NAMES_FILES:
        value = response.headers.get(name)
        if value is not None and (not PLAIN.fullmatch(value) or ".." in value):
            raise _refused(f"{without_secrets(str(response.url))} answers with an invalid {name}")


def _refused(message: str) -> DownloadError:
    return DownloadError(message, "nothing was kept; HF_ENDPOINT selects another mirror")
