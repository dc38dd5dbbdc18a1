"""`Guard`: decides who may use the server, before anything of a request but its head is read.

A browser runs code from anywhere, so being on this machine is not enough to be trusted:

* The `Host` header must name this server. Otherwise a web page elsewhere could let its own name point to this machine
  (DNS rebinding) and would then count as the same site.
* The headers `Origin` and `Sec-Fetch-Site`, which browsers set and pages cannot, must be those of our own page.
  Otherwise any page could send requests here (CSRF).
* With a token, every request must have it: in the header `Authorization: Bearer TOKEN`, or in a cookie, which the link
  with the token sets.
"""

from __future__ import annotations

import ipaddress
import json
import re
import secrets
import socket
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_HEAD = 16 << 10  # bytes of all headers
SHORTEST_TOKEN = 16  # characters
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::[0-9]{1,5})?")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


def is_loopback(host: str) -> bool:
    """Whether a server that listens on `host` can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def own_names(host: str, more: Collection[str] = ()) -> frozenset[str]:
    """The names under which a server on `host` may be addressed, besides IP addresses (see `Guard`)."""
    names = {"localhost", host.lower(), *(name.lower() for name in more)}
    if not is_loopback(host):
        name = socket.gethostname().lower()
        names |= {name, f"{name}.local", f"{name.partition('.')[0]}.local"}
    return frozenset(names)


class Guard:
    """Passes on to `app` only requests that may be answered, and adds headers to all answers.

    Args:
        app: the application.
        names: the host names of this server.
        any_address: whether it may be addressed by any IP address, and not only by those of the loopback. An address
            cannot be rebound as a name can.
        token: what every request must have; None: nothing.
        cookie: the name of the cookie with the token.
    """

    def __init__(
        self, app: ASGIApp, *, names: Collection[str], any_address: bool, token: str | None, cookie: str = "hasn"
    ) -> None:
        self._app = app
        self._names = frozenset(names)
        self._any_address = any_address
        self._token = token
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message.get("headers", ())}
                extra = [(name, value) for name, value in HEADERS if name not in given]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        headers = _Headers(scope)
        refusal = self._foreign(scope, headers)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > LARGEST_HEAD:
            await _answer(send_with_headers, 431, ("the headers are too large", None))
        elif refusal is not None:
            await _answer(send_with_headers, 403, refusal)
        elif self._is_link(scope):
            cookie = f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"
            await _answer(send_with_headers, 303, ("", None), [(b"location", b"/"), (b"set-cookie", cookie.encode())])
        elif not self._has_token(headers):
            refusal = ("this server needs its token", "open the link that `hasn serve` printed, or send the header "
                       "Authorization: Bearer TOKEN")  # fmt: skip
            await _answer(send_with_headers, 401, refusal, [(b"www-authenticate", b"Bearer")])
        else:
            await self._app(scope, receive, send_with_headers)

    def _foreign(self, scope: Scope, headers: _Headers) -> tuple[str, str | None] | None:
        """Why the request comes from somewhere else, as message and hint; None: it does not."""
        host = headers.only("host")
        if host is None or not self._is_ours(host):
            return (
                "this is not a name of this server",
                "open the address that `hasn serve` printed; --allow-host adds one",
            )
        origin = headers.only("origin", "")
        if origin is None or (origin and urlsplit(origin).netloc.lower() != host.lower()):
            return "requests from other web pages are refused", None
        site = headers.only("sec-fetch-site", "none")
        if site not in ("none", "same-origin") and not self._is_visit(scope, headers):
            return "requests from other web pages are refused", None
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether a `Host` header names this server. The port does not matter: a proxy or container may change it."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = (match[1] or match[2]).lower().rstrip(".")
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._any_address or address.is_loopback

    @staticmethod
    def _is_visit(scope: Scope, headers: _Headers) -> bool:
        """Whether somebody followed a link to our page, which shows nothing and changes nothing by itself."""
        navigates = headers.only("sec-fetch-mode") == "navigate" and headers.only("sec-fetch-dest") == "document"
        return navigates and scope["method"] == "GET" and scope["path"] == "/"

    def _is_link(self, scope: Scope) -> bool:
        if self._token is None or scope["path"] != "/" or scope["method"] != "GET":
            return False
        given = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=10).get("token", [])
        return len(given) == 1 and self._is_token(given[0])

    def _has_token(self, headers: _Headers) -> bool:
        if self._token is None:
            return True
        kind, _, given = (headers.only("authorization") or "").partition(" ")
        if kind.lower() == "bearer" and self._is_token(given.strip()):
            return True
        try:
            cookie = SimpleCookie(headers.only("cookie") or "").get(self._cookie)
        except CookieError:
            return False
        return cookie is not None and self._is_token(cookie.value)

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode("utf-8", "replace"), (self._token or "").encode())


class _Headers:
    """The headers of a request."""

    def __init__(self, scope: Scope) -> None:
        self._all = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]

    def only(self, wanted: str, default: str | None = None) -> str | None:
        """The value of a header; `default` if it is missing, None if it is there more than once."""
        values = [value.strip() for name, value in self._all if name == wanted]
        if not values:
            return default
        return values[0] if len(values) == 1 else None


async def _answer(
    send: Send, status: int, refusal: tuple[str, str | None], headers: Collection[tuple[bytes, bytes]] = ()
) -> None:
    """Answer without reading the rest of the request. The connection is closed, as its body may still come."""
    message, hint = refusal
    body = json.dumps({"error": message, "hint": hint}).encode() if message else b""
    plain = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*plain, *headers]})
    await send({"type": "http.response.body", "body": body})
