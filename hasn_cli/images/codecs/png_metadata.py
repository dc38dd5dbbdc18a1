"""Converts PNG's ancillary chunks to `Metadata` and back."""

from __future__ import annotations

import binascii
import contextlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from hasn_cli.images.iptc import iptc_from_photoshop, photoshop_from_iptc
from hasn_cli.images.limits import Room
from hasn_cli.images.metadata import INCHES_PER_METRE, whole_resolution
from hasn_cli.images.picture import Metadata, Text

_XMP_KEY = "XML:com.adobe.xmp"
METADATA_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"cICP")
_MAX_INTEGER = 2**31 - 1


def read_metadata(chunks: Iterable[tuple[bytes, bytes]]) -> Metadata:
    """Read metadata from chunks (types and bodies). Like viewers, this ignores malformed chunks.

    Raises:
        TooMuch: the chunks unpack to more than `limits.MAX_METADATA`.
    """
    found: dict[str, Any] = {}
    texts: list[Text] = []
    inflate = _Inflater()
    for kind, body in chunks:
        with contextlib.suppress(ValueError, struct.error, zlib.error, IndexError):
            if kind in (b"tEXt", b"zTXt", b"iTXt"):
                _sort_text(_read_text(kind, body, inflate), texts, found)
            elif kind == b"iCCP":
                found["icc"] = inflate(body[body.index(b"\0") + 2 :])
            else:
                found |= _read_chunk(kind, body)
    return Metadata(text=tuple(texts), **found)


def _read_chunk(kind: bytes, body: bytes) -> dict[str, Any]:
    if kind == b"eXIf":
        return {"exif": body.removeprefix(b"Exif\0\0")}
    if kind == b"pHYs":
        x, y, unit = struct.unpack(">IIB", body)
        return {"dpi": (x / INCHES_PER_METRE, y / INCHES_PER_METRE)} if unit == 1 and x and y else {}
    if kind == b"gAMA":
        return {"gamma": struct.unpack(">I", body)[0] / 100_000}
    if kind == b"cHRM":
        return {"chromaticities": tuple(value / 100_000 for value in struct.unpack(">8I", body))}
    if kind == b"sRGB":
        return {"srgb_intent": body[0]}
    return {"cicp": body} if kind == b"cICP" and len(body) == 4 else {}


def _read_text(kind: bytes, body: bytes, inflate: _Inflater) -> Text:
    key, rest = body.split(b"\0", 1)
    if kind == b"tEXt":
        return Text(key.decode("latin-1"), rest.decode("latin-1"))
    if kind == b"zTXt":
        return Text(key.decode("latin-1"), inflate(rest[1:]).decode("latin-1"))
    compressed = rest[0]
    language, translated, value = rest[2:].split(b"\0", 2)
    value = inflate(value) if compressed else value
    return Text(key.decode("latin-1"), value.decode(), language.decode("latin-1"), translated.decode())


def _sort_text(text: Text, texts: list[Text], found: dict[str, Any]) -> None:
    """Add a text to `texts`, or to `found` if it is really XMP, EXIF or IPTC."""
    raw = text.key.removeprefix("Raw profile type ") if text.key.startswith("Raw profile type ") else ""
    if text.key == _XMP_KEY:
        found["xmp"] = text.value.encode()
    elif raw in ("exif", "APP1", "iptc", "xmp"):
        _sort_raw_profile(raw, text.value, found)
    else:
        texts.append(text)


def _sort_raw_profile(name: str, value: str, found: dict[str, Any]) -> None:
    """Read a profile as ImageMagick stores it: a line with the name, one with the length, then hexadecimal digits."""
    digits = value.split("\n", 3)[3]
    profile = binascii.unhexlify(digits.replace("\n", "").replace(" ", ""))
    if profile.startswith(b"Exif\0\0"):
        found.setdefault("exif", profile[6:])
    elif name == "iptc":
        found.setdefault("iptc", iptc_from_photoshop(profile) or profile)
    elif name == "xmp":
        found.setdefault("xmp", profile)


class _Inflater:
    """Decompresses data, up to a limit that all chunks of a file share."""

    def __init__(self) -> None:
        self._room = Room()

    def __call__(self, packed: bytes) -> bytes:
        worker = zlib.decompressobj()
        data = worker.decompress(packed, self._room.left + 1)
        self._room.take(len(data))
        if not worker.eof:
            raise ValueError("truncated")
        return data


def metadata_chunks(metadata: Metadata, channels: int) -> Iterator[tuple[bytes, bytes]]:
    """Types and bodies of the metadata chunks, which may all come before the image data."""
    if metadata.cicp:
        yield b"cICP", metadata.cicp
    fits = metadata.icc is not None and (metadata.icc[16:20] == b"GRAY") == (channels <= 2)
    if metadata.icc and fits:
        yield b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc)
    elif metadata.srgb_intent is not None:
        yield b"sRGB", bytes([metadata.srgb_intent])
    if metadata.gamma is not None:
        yield b"gAMA", struct.pack(">I", round(metadata.gamma * 100_000))
    if metadata.chromaticities is not None:
        yield b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in metadata.chromaticities))
    if (resolution := whole_resolution(metadata.dpi, INCHES_PER_METRE, _MAX_INTEGER)) is not None:
        yield b"pHYs", struct.pack(">IIB", *resolution, 1)
    if metadata.exif:
        yield b"eXIf", metadata.exif
    if metadata.xmp:
        yield b"iTXt", _XMP_KEY.encode() + b"\0\0\0\0\0" + metadata.xmp
    if metadata.iptc:
        yield b"zTXt", _raw_profile("iptc", photoshop_from_iptc(metadata.iptc))
    for text in metadata.text:
        yield _write_text(text)


def _write_text(text: Text) -> tuple[bytes, bytes]:
    key = text.key.encode("latin-1", "replace")[:79] or b"Comment"
    with contextlib.suppress(UnicodeEncodeError):
        if not text.language and not text.translated_key:
            return b"tEXt", key + b"\0" + text.value.encode("latin-1")
    head = (key, b"\0\0", text.language.encode("latin-1", "replace"), text.translated_key.encode())
    return b"iTXt", head[0] + b"\0" + head[1] + head[2] + b"\0" + head[3] + b"\0" + text.value.encode()


def _raw_profile(name: str, profile: bytes) -> bytes:
    digits = profile.hex()
    lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    text = f"\n{name}\n{len(profile):8}\n{lines}\n"
    return f"Raw profile type {name}\0\0".encode() + zlib.compress(text.encode())
