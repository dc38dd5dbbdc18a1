"""Finds and removes XMP that points to other pictures and videos in the same file.

None of those are copied when a picture is enlarged: gain maps and depth maps belong to its old pixels, and a video
would stay small. Pointers to them would be dangling, so they are removed too.
"""

from __future__ import annotations

from collections.abc import Iterator

from hasn_cli.images.xmp import Name, Node, Packet

GAIN_MAP, VIDEO, DEPTH_MAP, OTHERS = "gain map", "video", "depth map", "further pictures"
UNKNOWN = "data behind the picture, of an unknown kind,"
_LEAST = 16  # fewer bytes after a picture are not worth a notice

_CONTAINERS = ("http://ns.google.com/photos/1.0/container/", "http://ns.google.com/photos/dd/1.0/container/")
_ITEMS = ("http://ns.google.com/photos/1.0/container/item/", "http://ns.google.com/photos/dd/1.0/item/")
# every property of these namespaces is a pointer
_NAMESPACES = {
    "http://ns.adobe.com/hdr-gain-map/1.0/": GAIN_MAP,
    "http://ns.apple.com/HDRGainMap/1.0/": GAIN_MAP,
    "http://ns.google.com/photos/dd/1.0/device/": DEPTH_MAP,
    "http://ns.oplus.com/photos/1.0/camera/": VIDEO,
}
_CAMERAS = ("http://ns.google.com/photos/1.0/camera/", "http://ns.xiaomi.com/photos/1.0/camera/")
_VIDEO_PREFIXES = ("MotionPhoto", "MicroVideo")
_XIAOMI: Name = ("http://ns.xiaomi.com/photos/1.0/camera/", "XMPMeta")
_SEMANTICS = {
    "gainmap": GAIN_MAP,
    "hdrgainmap": GAIN_MAP,
    "motionphoto": VIDEO,
    "depth": DEPTH_MAP,
    "confidence": DEPTH_MAP,
}


_GAIN_MAP_MARKS = (b"hdrgm:Version", b"HDRGainMapVersion", b"urn:iso:std:iso:ts:21496")
_JPEG = b"\xff\xd8\xff"


def kinds_behind(data: bytes | memoryview) -> tuple[str, ...]:
    """The kinds of parts in the data that follows the picture in a file."""
    found = bytes(data)
    kinds = []
    if _JPEG in found:
        kinds.append(GAIN_MAP if any(mark in found for mark in _GAIN_MAP_MARKS) else OTHERS)
    if b"ftyp" in found:
        kinds.append(VIDEO)
    if not kinds and len(found.strip(b"\0\xff\r\n ")) >= _LEAST:
        kinds.append(UNKNOWN)
    return tuple(kinds)


def drop_pointers(packet: Packet) -> tuple[str, ...]:
    """Remove pointers to other parts of the file. Returns the kinds of those parts."""
    found: list[str] = []
    for node in _outermost(packet.root):
        found += _kinds(packet, node)
        packet.remove(node)
    return tuple(dict.fromkeys(found))


def _outermost(node: Node) -> Iterator[Node]:
    for below in node.below:
        if _points(below.name):
            yield below
        else:
            yield from _outermost(below)


def _points(name: Name) -> bool:
    namespace, local = name
    if namespace in _NAMESPACES or name == _XIAOMI:
        return True
    if namespace in _CAMERAS:
        return local.startswith(_VIDEO_PREFIXES)
    return namespace in _CONTAINERS and local == "Directory"


def _kinds(packet: Packet, node: Node) -> Iterator[str]:
    if node.name[0] in _NAMESPACES:
        yield _NAMESPACES[node.name[0]]
    elif node.name[0] in _CAMERAS and node.name != _XIAOMI:
        yield VIDEO
    for below in node.walk():
        if below.name in [(space, "Semantic") for space in _ITEMS]:
            semantic = packet.text(below).lower()
            if semantic != "primary":
                yield _SEMANTICS.get(semantic, OTHERS)
