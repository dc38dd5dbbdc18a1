"""Where a server may send us on to: never to files, to less safety, or into a private network from outside of it."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

ROADS = ("http", "https")


def why_not_to_follow(origin: str, target: str) -> str | None:
    """Why a server at the URL `origin` may not send us to the URL `target`; None where it may.

    A mirror inside a private network may send us to its neighbours, and one on this machine to this machine; a server
    on the internet to neither. Names are looked up; one that this machine cannot look up is left to the proxy.
    """
    here, there = urlsplit(origin), urlsplit(target)
    if there.scheme not in ROADS:
        return f"it leads to a {there.scheme or 'nameless'}: address"
    if here.scheme == "https" and there.scheme == "http":
        return "it leads from https to http"
    if there.hostname is None:
        return "it leads nowhere"
    inside = here.hostname == there.hostname or (here.hostname is not None and is_private(here.hostname))
    if not inside and is_private(there.hostname):
        return f"it leads to {there.hostname}, inside a private network"
    return None


def is_private(host: str) -> bool:
    """Whether any of a host's addresses is not of the internet: of this machine, of a local network, or reserved."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return any(_is_private(str(address[0])) for *_, address in found)


def without_secrets(url: str) -> str:
    """A URL as it may be shown: no user, no password, no query."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "the address"
    return parts._replace(netloc=host, query="", fragment="").geturl()


def _is_private(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return not (mapped or ip).is_global
