"""Download a file of known size and SHA-256 from a URL. An interrupted download is resumed.

This is for files that are not on the hub. The standard library's client respects the proxy variables and
`SSL_CERT_FILE`.
"""

from __future__ import annotations

import http.client
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO

from hasn_cli import files
from hasn_cli.errors import DownloadError
from hasn_cli.weights.addresses import why_not_to_follow, without_secrets

ATTEMPTS = 5
FIRST_PAUSE = 1.0  # seconds before the second attempt; doubled for each further one
LONGEST_PAUSE = 30.0
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 16
WORTH_A_RETRY = (408, 425, 429, 500, 502, 503, 504)
TRANSIENT = (urllib.error.URLError, TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException)


def download(url: str, target: Path, *, sha256: str, size: int, progress: Callable[[int, int], None]) -> None:
    """Download `url` to `target`.

    Args:
        url: an http, https or file URL. Redirects are followed as far as `addresses` allows, never to a file.
        target: the file, replaced in one step when the content is complete and correct.
        sha256: the required SHA-256, in hex.
        size: the required length in bytes. Nothing beyond it is read.
        progress: called with the bytes received so far and `size`.

    Raises:
        DownloadError: the server refuses, cannot be reached, or sends another file. No partial file remains.
        OSError: `target` cannot be written.
    """
    with files.replacing(target) as file:
        _fill(url, file, size, progress)
        found = files.seal(file).sha256
        if found != sha256:
            raise DownloadError(
                f"{without_secrets(url)} is not the file it should be: its SHA-256 is {found}, not {sha256}",
                "nothing was kept; a proxy or mirror may have altered it",
            )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows the redirects that `addresses` allows. Python's own handler allows ftp and any host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        reason = why_not_to_follow(req.full_url, newurl)
        if reason is not None:
            shown = f"{without_secrets(req.full_url)} redirects to {without_secrets(newurl)}"
            raise DownloadError(f"{shown}, which is refused: {reason}", "nothing was kept")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Python's opener, but only for http, https and file. It respects the proxy variables."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.FileHandler,
        _Redirects,
    ):
        opener.add_handler(handler())
    return opener


def _fill(url: str, file: BinaryIO, size: int, progress: Callable[[int, int], None]) -> None:
    """Download `url` into `file`, and resume if the connection breaks."""
    pause = FIRST_PAUSE
    for attempt in range(1, ATTEMPTS + 1):
        wait = pause
        try:
            _append(url, file, size, progress)
            return
        except urllib.error.HTTPError as error:
            if error.code not in WORTH_A_RETRY or attempt == ATTEMPTS:
                raise _refused(url, error.code) from error
            wait = min(_seconds(error.headers.get("Retry-After"), pause), LONGEST_PAUSE)
        except TRANSIENT as error:
            if attempt == ATTEMPTS:
                reason = getattr(error, "reason", None) or error
                raise DownloadError(
                    f"cannot download {without_secrets(url)}: {reason}", "check the connection and try again"
                ) from error
        time.sleep(wait)
        pause *= 2


def _append(url: str, file: BinaryIO, size: int, progress: Callable[[int, int], None]) -> None:
    have = file.tell()
    if "@" in urllib.parse.urlsplit(url).netloc:
        raise DownloadError(f"the address of {without_secrets(url)} contains a user name, which is not supported")
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "hasn", "Accept-Encoding": "identity"})
    except ValueError as error:
        raise DownloadError(
            f"'{without_secrets(url)}' is not a web address ({error})", "web addresses start with https://"
        ) from error
    if have:
        request.add_header("Range", f"bytes={have}-")
    with _opener().open(request, timeout=TIMEOUT) as response:
        if have and response.status != http.client.PARTIAL_CONTENT:  # the server sends everything from the start
            file.seek(0)
        while file.tell() < size and (chunk := response.read(min(CHUNK, size - file.tell()))):
            file.write(chunk)
            progress(file.tell(), size)
        if file.tell() < size:
            raise ConnectionError(f"the connection ended after {file.tell()} of {size} bytes")
        if response.read(1):
            raise DownloadError(
                f"{without_secrets(url)} is longer than the {size} bytes it should have", "nothing was kept"
            )


def _seconds(text: str | None, default: float) -> float:
    return float(text) if text and text.isdecimal() else default


def _refused(url: str, status: int) -> DownloadError:
    hints = {404: "the file has moved", 429: "the server asks to slow down; wait a while and try again"}
    hint = hints.get(status, "try again later" if status >= 500 else "check the address and the proxy")
    return DownloadError(
        f"{without_secrets(url)} answers {status} {http.client.responses.get(status, '')}".rstrip(), hint
    )
