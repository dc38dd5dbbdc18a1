"""Edits XMP packets in place: a few values are overwritten or removed, and every other byte stays the same.

XMP is RDF in XML (ISO 16684-1): a property is an attribute or an element, simple or a structure, and each packet can
choose its own prefixes for namespaces. Expat reports the position of each property.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
XMPMETA = "adobe:ns:meta/"
# the usual namespaces of these prefixes; some writers do not declare them
_USUAL = {
    "rdf": RDF,
    "x": XMPMETA,
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "exif": "http://ns.adobe.com/exif/1.0/",
}
_ATTRIBUTE = re.compile(rb"""([^\s=<>"'/]+)\s*=\s*("[^"]*"|'[^']*')""")
_TAG = re.compile(rb"""<(?:[^<>"']|"[^"]*"|'[^']*')*>""")
_MAX_DEPTH = 100
_MAX_NODES = 50_000

Name = tuple[str, str]
"""Namespace and local name."""


@dataclass(eq=False)
class Node:
    """An attribute or an element.

    Attributes:
        name: namespace and local name.
        title: its name as written, with its prefix.
        whole: its start and end in the packet, including its tags, or the space before an attribute.
        inner: the start and end of its value.
        parent: the element around it.
        below: the attributes and elements in it.
    """

    name: Name
    title: str
    whole: tuple[int, int]
    inner: tuple[int, int]
    parent: Node | None
    below: list[Node] = field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        """All attributes and elements in it, at any depth."""
        for node in self.below:
            yield node
            yield from node.walk()


class Packet:
    """An XMP packet that can be searched and edited.

    Raises:
        ValueError: it is not well-formed XML, or it declares a document type.
    """

    def __init__(self, data: bytes) -> None:
        self.data = _as_utf8(data).rstrip(b"\0")
        self._edits: dict[tuple[int, int], bytes] = {}
        self.root = _Reader(self.data).root
        self._by_name: dict[Name, list[Node]] = {}
        for node in self.root.walk():
            self._by_name.setdefault(node.name, []).append(node)

    def find(self, *names: Name) -> Iterator[Node]:
        """All properties with these names, at any depth, that have not been removed."""
        return (node for name in names for node in self._by_name.get(name, ()) if not self._is_gone(node))

    def text(self, node: Node) -> str:
        """A simple property's value."""
        start, end = node.inner
        return self.data[start:end].decode(errors="replace").strip()

    def number(self, node: Node | None) -> float | None:
        """The value of a number or a ratio, or None if it is neither."""
        try:
            over, _, under = self.text(node).partition("/") if node else ("", "", "")
            value = float(over) / float(under or 1)
        except (ValueError, ZeroDivisionError):
            return None
        return value if abs(value) < 1e15 else None

    def field(self, node: Node, name: Name) -> Node | None:
        """A structure's field; of the root, the first of that name anywhere."""
        if node is self.root:
            return next(self.find(name), None)
        return next((below for below in node.walk() if below.name == name), None)

    def items(self, node: Node) -> list[Node]:
        """The entries of a list."""
        return [below for below in node.walk() if below.name == (RDF, "li")]

    def set(self, node: Node, value: str) -> None:
        """Overwrite a simple property's value."""
        if self.text(node) != value:
            self._edits[node.inner] = value.encode()

    def remove(self, node: Node) -> None:
        """Remove a property."""
        self._edits[node.whole] = b""

    def _is_gone(self, node: Node) -> bool:
        above: Node | None = node
        while above is not None:
            if self._edits.get(above.whole) == b"":
                return True
            above = above.parent
        return False

    def to_bytes(self) -> bytes:
        """The edited packet."""
        pieces, done = [], 0
        for (start, end), value in sorted(self._edits.items()):
            if start >= done:  # otherwise it lies within a property that was removed
                pieces += [self.data[done:start], value]
                done = end
        return b"".join([*pieces, self.data[done:]])


def _as_utf8(data: bytes) -> bytes:
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig")):
        if data.startswith(mark):
            return data.decode(encoding).encode()
    return data


class _Reader:
    """Builds the tree of one packet."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._skipped = len(data) - len(data.lstrip())  # an XML declaration must come first
        self.root = Node(("", ""), "", (0, len(data)), (0, len(data)), None)
        self._open = [self.root]
        self._bindings: list[dict[str, str]] = [_USUAL]
        self._count = 0
        parser = expat.ParserCreate("utf-8")
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = self._refuse
        self._parser = parser
        try:
            parser.Parse(data[self._skipped :], True)
        except expat.ExpatError as error:
            raise ValueError(f"XMP is not valid XML ({error})") from None

    def _refuse(self, *_: Any) -> None:
        raise ValueError("XMP declares a document type")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._count += 1 + len(attributes)
        if len(self._open) > _MAX_DEPTH or self._count > _MAX_NODES:
            raise ValueError("XMP is too large or nested too deeply")
        start = self._skipped + self._parser.CurrentByteIndex
        found = _TAG.match(self._data, start)
        end = found.end() if found else start
        bound = {key.partition(":")[2]: value for key, value in attributes.items() if key.partition(":")[0] == "xmlns"}
        self._bindings.append(self._bindings[-1] | bound if bound else self._bindings[-1])
        node = Node(self._name(tag), tag, (start, end), (end, end), self._open[-1])
        self._open[-1].below.append(node)
        self._open.append(node)
        for match in _ATTRIBUTE.finditer(self._data, start, end):
            key = match[1].decode(errors="replace")
            if key.partition(":")[0] == "xmlns":
                continue
            blank = start + len(self._data[start : match.start()].rstrip())
            inner = (match.start(2) + 1, match.end(2) - 1)
            node.below.append(Node(self._name(key), key, (blank, match.end()), inner, node))

    def _end(self, tag: str) -> None:
        node = self._open.pop()
        self._bindings.pop()
        at = self._skipped + self._parser.CurrentByteIndex
        if self._data.endswith(b"/>", node.whole[0], node.whole[1]):
            return
        close = self._data.index(b">", at) + 1
        node.inner = (node.inner[1], at)
        node.whole = (node.whole[0], close)

    def _name(self, name: str) -> Name:
        prefix, colon, local = name.rpartition(":")
        return (self._bindings[-1].get(prefix, prefix), local) if colon else (self._bindings[-1].get("", ""), local)
