"""Which redirects to follow: never to files, from https to http, or from the internet into a private network."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

SCHEMES = ("http", "https")


def why_not_to_follow(origin: str, target: str) -> str | None:
    """Why a server at the URL `origin` may not redirect us to the URL `target`; None if it may.

    A mirror in a private network may redirect to other servers there, and one on this machine to this machine. A server
    on the internet may do neither. Host names are resolved; those that cannot be resolved here are left to the proxy.
    """
    here, there = urlsplit(origin), urlsplit(target)
    if there.scheme not in SCHEMES:
        return f"it leads to a {there.scheme or 'nameless'}: address"
    if here.scheme == "https" and there.scheme == "http":
        return "it leads from https to http"
    if there.hostname is None:
        return "it names no server"
    inside = here.hostname == there.hostname or (here.hostname is not None and is_private(here.hostname))
    if not inside and is_private(there.hostname):
        return f"it leads to {there.hostname}, inside a private network"
    return None


def is_private(host: str) -> bool:
    """Whether any address of a host is not on the internet: this machine, a local network, or a reserved range."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return any(_is_private(str(address[0])) for *_, address in found)


def without_secrets(url: str) -> str:
    """A URL without user, password and query, so that it can be shown."""
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
